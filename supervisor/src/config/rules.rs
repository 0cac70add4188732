//! What the settings file says of single models: `memory_limit.NAME = 2GB` and `priority.NAME = 5`.

use std::collections::BTreeMap;

use crate::limits::PRIORITY_MAX;
use ollmlx_proto::memory::{MODEL_LIMIT_RULE, parse_model_limit};

use super::raw::{Complaint, ModelSetting, Origin, Sources};
use super::value::ValueError;

/// Of one model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Bytes that it may take.
    pub memory_limit: Option<u64>,
    /// Models of a lower one make room first.
    pub priority: Option<i32>,
}

/// By name, in lower case and with its tag.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(BTreeMap<String, Rule>);

impl Rules {
    /// From the settings file; what makes no sense is left out.
    pub(super) fn read(sources: &Sources, complaints: &mut Vec<Complaint>) -> Self {
        let mut rules: BTreeMap<String, Rule> = BTreeMap::new();
        for ModelSetting { setting, model, text, line } in sources.model_settings() {
            let rule = rules.entry(tagged(model)).or_default();
            let reason = match setting {
                "memory_limit" => match parse_model_limit(text) {
                    Some(bytes) => {
                        rule.memory_limit = Some(bytes);
                        continue;
                    }
                    None => ValueError::ModelLimitInvalid { text: text.to_owned(), rule: MODEL_LIMIT_RULE },
                },
                _ => match text.parse::<i32>() {
                    Ok(priority) if (-PRIORITY_MAX..=PRIORITY_MAX).contains(&priority) => {
                        rule.priority = Some(priority);
                        continue;
                    }
                    _ => ValueError::OutOfRange { text: text.to_owned(), least: -PRIORITY_MAX, most: PRIORITY_MAX },
                },
            };
            let reason = reason.to_string();
            let name = format!("{setting} of {model:?}");
            complaints.push(Complaint { name, origin: Origin::File, line: Some(line), reason });
        }
        Self(rules)
    }

    /// What is said of the model of this name, which is a path or has its tag.
    #[must_use]
    pub fn of(&self, name: &str) -> Rule {
        self.0.get(&tagged(name)).copied().unwrap_or_default()
    }
}

fn tagged(name: &str) -> String {
    let name = name.to_lowercase();
    let last = name.rsplit('/').next().unwrap_or_default();
    if name.starts_with('/') || last.contains(':') { name } else { name + ":latest" }
}

#[cfg(test)]
mod tests {
    use super::super::raw::SettingsFile;
    use super::*;

    #[test]
    fn a_model_is_found_with_and_without_its_tag() {
        let lines = [
            "memory_limit.Smol = 2GB",
            "priority.smol:latest = -5",
            "priority.hf.co/A/b:Q4 = 1000",
            "memory_limit./m/x.gguf = 1MiB",
            "memory_limit.bad = lots",
            "memory_limit.none = 0",
            "priority.bad = high",
            "priority.far = 1001",
            "memory_limit.half = 50%",
        ];
        let file = SettingsFile::parse(&lines.join("\n"));
        let mut complaints = Vec::new();
        let rules = Rules::read(&Sources { file, ..Sources::default() }, &mut complaints);
        let smol = Rule { memory_limit: Some(2_000_000_000), priority: Some(-5) };
        assert_eq!((rules.of("smol:latest"), rules.of("SMOL")), (smol, smol));
        assert_eq!(rules.of("hf.co/a/B:q4").priority, Some(PRIORITY_MAX));
        assert_eq!(rules.of("/m/x.gguf").memory_limit, Some(1 << 20));
        assert_eq!((rules.of("bad"), rules.of("none"), rules.of("stranger")), Default::default());
        assert_eq!((rules.of("far"), rules.of("half")), Default::default());
        complaints.sort_by_key(|one| one.line);
        assert_eq!(complaints.iter().map(|one| one.line).collect::<Vec<_>>(), [5, 6, 7, 8, 9].map(Some));
        let of_line = |line: usize| complaints[line - 5].reason.as_str();
        assert_eq!(of_line(8), "must be a whole number from -1000 to 1000, not \"1001\"");
        for (line, text) in [(5, "lots"), (6, "0"), (9, "50%")] {
            assert_eq!(of_line(line), format!("must be {MODEL_LIMIT_RULE}, not {text:?}"));
        }
    }
}
