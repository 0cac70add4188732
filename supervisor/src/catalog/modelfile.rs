//! placeholder until the catalogue's own parser is merged
use super::StoredMessage;

/// A Modelfile.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Modelfile {
    /// FROM
    pub from: Vec<String>,
    /// ADAPTER
    pub adapters: Vec<String>,
    /// PARAMETER
    pub parameters: serde_json::Map<String, serde_json::Value>,
    /// TEMPLATE
    pub template: Option<String>,
    /// SYSTEM
    pub system: Option<String>,
    /// LICENSE
    pub license: Vec<String>,
    /// MESSAGE
    pub messages: Vec<StoredMessage>,
}

/// Parses FROM lines only.
///
/// # Errors
/// No FROM.
pub fn parse(text: &str) -> Result<Modelfile, String> {
    let from: Vec<String> = text.lines().filter_map(|line| line.strip_prefix("FROM ")).map(str::to_owned).collect();
    if from.is_empty() { Err("no FROM line".to_owned()) } else { Ok(Modelfile { from, ..Modelfile::default() }) }
}
