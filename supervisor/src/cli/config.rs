//! `ollmlx config`: every setting in force, and where it comes from.

use serde_json::{Map, Value, json};

use super::error::CliError;
use super::output::{print, print_json};
use super::text_table;
use crate::config::Config;
use crate::os::stderr::tell;

/// Prints.
///
/// # Errors
/// Standard output is gone.
pub fn run(config: &Config, args: &super::args::ConfigArgs) -> Result<(), CliError> {
    for warning in &config.warnings {
        tell(format_args!("Warning: {warning}"));
    }
    if args.json {
        let entries: Map<String, Value> = config
            .entries
            .iter()
            .map(|entry| {
                let value = json!({"value": entry.value, "origin": entry.origin.to_string(), "unit": entry.knob.unit,
                    "default": entry.knob.default, "env": entry.knob.env, "help": entry.knob.help});
                (entry.knob.name.to_owned(), value)
            })
            .collect();
        return print_json(&Value::Object(entries));
    }
    let rows: Vec<Vec<String>> = config
        .entries
        .iter()
        .map(|entry| {
            let value = if entry.value.is_empty() { "-" } else { &entry.value };
            vec![entry.knob.name.to_owned(), value.to_owned(), entry.origin.to_string()]
        })
        .collect();
    print(&text_table::with_header(&["NAME", "VALUE", "ORIGIN"], &rows))
}
