//! Prometheus' exposition format 0.0.4.

use std::fmt::Write as _;

/// What a monitoring system reads, in the making.
#[derive(Default)]
pub(in crate::http) struct Exposition(pub(in crate::http) String);

impl Exposition {
    /// The head of a family of samples.
    pub(in crate::http) fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a string can't fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One sample.
    pub(in crate::http) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{escaped}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// A family of one sample without labels.
    pub(in crate::http) fn single(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut out = Exposition::default();
        out.sample("a", &[("b", "x\\y\"z\n")], 1.5);
        assert_eq!(out.0, "a{b=\"x\\\\y\\\"z\\n\"} 1.5\n");
    }
}
