//! The faults that are tried, what must come of each, and the choice among them and the hostile requests. Pure.

use crate::limits::MIB;

use super::super::error::CliError;
use super::requests::{self, HostileRequest};

/// What every client asks that isn't the fault itself.
pub(super) const QUESTION: &str = "Tell me a story about a ship.";

/// What must come of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// The answer of the calm run, to the last byte.
    Same,
    /// A whole answer. A worker that crashes in its start is followed by one that computes in another way.
    Whole,
    /// One error that says that the request itself is the reason.
    Refused,
}

impl Expected {
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Same => "the calm answer",
            Self::Whole => "a whole answer",
            Self::Refused => "one error",
        }
    }
}

/// One fault.
#[derive(Clone, Debug)]
pub(super) struct Trial {
    /// In the words of `OLLMLX_FAULT`.
    pub(super) fault: String,
    /// Settings of the private server beside it.
    pub(super) settings: Vec<(&'static str, String)>,
    pub(super) expected: Expected,
    /// The class of the death that the server must tell of; none is no death at all.
    pub(super) death: Option<&'static str>,
}

/// In the prompt of the request that is deadly.
pub(super) const DEADLY: &str = "doom";
/// Asks for all faults.
pub(super) const FAULTS: &str = "faults";
/// Asks for all hostile requests.
pub(super) const REQUESTS: &str = "requests";
/// Sooner than the defaults, so that nobody has to wait for what is stuck on purpose.
const PATIENCE: &str = "3s";

/// All of them, for a model that holds this many bytes.
pub(super) fn all(model_bytes: u64) -> Vec<Trial> {
    let trial = |fault: String, expected, death| Trial { fault, settings: Vec::new(), expected, death };
    let once = |fault: &str| format!("{fault};times=1");
    // Memory is looked at once a second, and a worker that is idle by then just makes room.
    let slowly = |fault: String| format!("{},{}", once(&fault), once("slow=100"));
    let mib = MIB as u64;
    let room_mib = model_bytes / 10 / mib + 256;
    let limit = ("OLLMLX_MEMORY_LIMIT", (model_bytes + room_mib * mib).to_string());
    let with = |trial: Trial, setting: (&'static str, String)| Trial { settings: vec![setting], ..trial };
    vec![
        trial(once("crash@4"), Expected::Same, Some("SIGSEGV")),
        trial(once("abort@4"), Expected::Same, Some("SIGABRT")),
        trial(once("exit=7@4"), Expected::Same, Some("exited")),
        trial(once("garbage@4"), Expected::Same, Some("protocol")),
        trial(once("half@4"), Expected::Same, Some("exited")),
        with(trial(once("hang@4"), Expected::Same, Some("silent")), ("OLLMLX_HANG_TIMEOUT", PATIENCE.to_owned())),
        trial("slow=20".to_owned(), Expected::Same, None),
        trial(once("abort-load"), Expected::Whole, Some("SIGABRT")),
        with(
            trial(once("hang-load"), Expected::Same, Some("load-stalled")),
            ("OLLMLX_LOAD_TIMEOUT", PATIENCE.to_owned()),
        ),
        with(trial(slowly(format!("leak={room_mib}")), Expected::Same, Some("over-budget")), limit.clone()),
        with(trial(slowly(format!("balloon={}@4", 2 * room_mib)), Expected::Same, Some("over-budget")), limit),
        trial(format!("crash@4;text={DEADLY}"), Expected::Refused, Some("SIGSEGV")),
    ]
}

/// The name of a fault, without its numbers and conditions.
fn name(fault: &str) -> &str {
    fault.split(['@', '=', ';']).next().unwrap_or(fault)
}

/// What is to be tried.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) trials: Vec<Trial>,
    pub(super) requests: Vec<HostileRequest>,
}

/// Those that are asked for, by name or by [`FAULTS`] and [`REQUESTS`]; all where none is.
///
/// # Errors
/// A name that none has.
pub(super) fn chosen(model_bytes: u64, names: &[String]) -> Result<Chosen, CliError> {
    let trials = all(model_bytes);
    let known = || {
        let faults = trials.iter().map(|trial| name(&trial.fault));
        faults.chain(requests::ALL.iter().map(|request| request.name)).chain([FAULTS, REQUESTS])
    };
    if let Some(unknown) = names.iter().find(|asked| known().all(|name| name != **asked)) {
        let mut listed: Vec<&str> = Vec::new();
        for name in known() {
            if !listed.contains(&name) {
                listed.push(name);
            }
        }
        return Err(CliError::Usage(format!("unknown fault {unknown:?}; known are {}", listed.join(", "))));
    }
    let is_asked =
        |name: &str, kind: &str| names.is_empty() || names.iter().any(|asked| asked == name || asked == kind);
    let requests = requests::ALL.iter().filter(|request| is_asked(request.name, REQUESTS)).cloned().collect();
    let trials = trials.into_iter().filter(|trial| is_asked(name(&trial.fault), FAULTS)).collect();
    Ok(Chosen { trials, requests })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_fault_is_tried_and_every_text_is_understood() {
        let trials = all(1 << 30);
        for trial in &trials {
            ollmlx_proto::fault::parse(&trial.fault).unwrap_or_else(|error| panic!("{}: {error}", trial.fault));
        }
        // What the parser says it knows is tried.
        let error = ollmlx_proto::fault::parse("no-such-fault").unwrap_err().to_string();
        let known = error.split_once("known are ").expect("it names them").1.replace(" and ", ", ");
        for known in known.split(", ") {
            assert!(trials.iter().any(|trial| name(&trial.fault) == known), "{known}");
        }
    }

    #[test]
    fn faults_are_chosen_by_name() {
        let asked = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            chosen(1, &names).map(|chosen| (chosen.trials.len(), chosen.requests.len()))
        };
        let (faults, requests) = (all(1).len(), requests::ALL.len());
        assert_eq!(asked(&[]).unwrap(), (faults, requests));
        assert_eq!(asked(&["hang", "crash"]).unwrap(), (3, 0), "crash is tried in two ways");
        assert_eq!(asked(&["hang", "requests"]).unwrap(), (1, requests));
        assert_eq!(asked(&["faults", "turns"]).unwrap(), (faults, 1));
        assert!(asked(&["crush"]).unwrap_err().to_string().contains("known are crash, abort, exit"));
    }
}
