//! What the settings file says of single models: `memory_limit.NAME = 2GB` and `priority.NAME = 5`.

use std::collections::BTreeMap;

use ollmlx_proto::limits::PRIORITY_MAX;

use super::raw::{Complaint, ModelSetting, Origin, Sources};
use super::value;

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
                "memory_limit" => match value::parse_bytes(text) {
                    Ok(bytes) if bytes > 0 => {
                        rule.memory_limit = Some(bytes);
                        continue;
                    }
                    Ok(_) => "it leaves nothing".to_owned(),
                    Err(error) => error.to_string(),
                },
                _ => match text.parse::<i32>() {
                    Ok(priority) => {
                        rule.priority = Some(priority.clamp(-PRIORITY_MAX, PRIORITY_MAX));
                        continue;
                    }
                    Err(_) => format!("{text:?} is no whole number"),
                },
            };
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
            "priority.hf.co/A/b:Q4 = 99999",
            "memory_limit./m/x.gguf = 1KiB",
            "memory_limit.bad = lots",
            "memory_limit.none = 0",
            "priority.bad = high",
        ];
        let file = SettingsFile::parse(&lines.join("\n"));
        let mut complaints = Vec::new();
        let rules = Rules::read(&Sources { file, ..Sources::default() }, &mut complaints);
        let smol = Rule { memory_limit: Some(2_000_000_000), priority: Some(-5) };
        assert_eq!((rules.of("smol:latest"), rules.of("SMOL")), (smol, smol));
        assert_eq!(rules.of("hf.co/a/B:q4").priority, Some(PRIORITY_MAX));
        assert_eq!(rules.of("/m/x.gguf").memory_limit, Some(1024));
        assert_eq!((rules.of("bad"), rules.of("none"), rules.of("stranger")), Default::default());
        assert_eq!(complaints.iter().map(|one| one.line).collect::<Vec<_>>(), [Some(5), Some(6), Some(7)]);
    }
}
