//! `ollmlx show`: what is known of a model.

use serde_json::{Value, json};

use super::args::{ShowArgs, exactly};
use super::client::Client;
use super::error::CliError;
use super::output::{print, print_json, print_whole, text_of};
use super::text_table::{self, TEXT_COLUMNS_MAX};
use super::{human, model_path};
use crate::os::stderr::tell;

/// Lines of a system text or licence that are shown.
const TEXT_LINES_MAX: usize = 2;
/// Items of an array that are shown.
const ARRAY_ITEMS_MAX: usize = 3;
/// Columns of an ordinary cell.
const CELL_COLUMNS_MAX: usize = 30;

/// Prints the sections, or the one that was asked for.
///
/// # Errors
/// No server, its refusal, or more than one section asked for.
pub async fn run(client: &Client, args: ShowArgs) -> Result<(), CliError> {
    let sections = [
        (args.license, "license"),
        (args.modelfile, "modelfile"),
        (args.parameters, "parameters"),
        (args.system, "system"),
        (args.template, "template"),
    ];
    let mut wanted = sections.iter().filter(|(wanted, _)| *wanted).map(|(_, key)| *key);
    let section = wanted.next();
    if wanted.next().is_some() {
        let text =
            "only one of '--license', '--modelfile', '--parameters', '--system', or '--template' can be specified";
        return Err(CliError::Usage(text.to_owned()));
    }
    let [name] = exactly(args.names)?;
    client.heartbeat().await?;
    let model = model_path::absolute(&name).unwrap_or(name);
    let answer = client.post("/api/show", &json!({"model": model, "verbose": args.verbose})).await?;
    match section {
        None if args.json => print_json(&answer),
        None => print(&sections_text(&answer)),
        Some("template") => {
            if let Some(source) = answer["template_source"].as_str() {
                tell(format_args!("Template from {source}:"));
            }
            print_whole(template(&answer))
        }
        Some(key) => {
            let newline = if key == "system" { "" } else { "\n" };
            print_whole(&format!("{}{newline}", text_of(&answer, key)))
        }
    }
}

/// The one that prompts are made by; another server says only which one it has stored.
pub(super) fn template(answer: &Value) -> &str {
    text_of(answer, if answer["template_source"].is_null() { "template" } else { "template_in_use" })
}

/// All sections that have something in them.
pub(super) fn sections_text(answer: &Value) -> String {
    let mut out = String::new();
    let mut section = |title: &str, rows: &[Vec<String>], columns_max: usize| {
        if !rows.is_empty() {
            out.push_str(&format!("  {title}\n{}\n", text_table::indented(rows, columns_max)));
        }
    };
    section("Model", &model_rows(answer), CELL_COLUMNS_MAX);
    let capabilities = answer["capabilities"].as_array().map_or(&[][..], Vec::as_slice);
    let rows: Vec<Vec<String>> = capabilities.iter().filter_map(|word| Some(vec![word.as_str()?.to_owned()])).collect();
    section("Capabilities", &rows, CELL_COLUMNS_MAX);
    section("Projector", &projector_rows(answer), CELL_COLUMNS_MAX);
    let rows: Vec<Vec<String>> = text_of(answer, "parameters")
        .lines()
        .map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .filter(|row| !row.is_empty())
        .collect();
    section("Parameters", &rows, CELL_COLUMNS_MAX);
    // Only a verbose answer has tensors, and only then is all of the metadata of interest.
    if let Some(tensors) = answer["tensors"].as_array() {
        section("Metadata", &metadata_rows(answer), CELL_COLUMNS_MAX);
        let rows: Vec<Vec<String>> = tensors
            .iter()
            .map(|tensor| {
                vec![text_of(tensor, "name").into(), text_of(tensor, "type").into(), abbreviated(&tensor["shape"])]
            })
            .collect();
        section("Tensors", &rows, CELL_COLUMNS_MAX);
    }
    if let Some(source) = answer["template_source"].as_str() {
        let mut rows = vec![vec![format!("from {source}")]];
        rows.extend(text_rows(template(answer)));
        section("Template", &rows, TEXT_COLUMNS_MAX);
    }
    section("System", &text_rows(text_of(answer, "system")), TEXT_COLUMNS_MAX);
    section("License", &text_rows(text_of(answer, "license")), TEXT_COLUMNS_MAX);
    out
}

fn model_rows(answer: &Value) -> Vec<Vec<String>> {
    let info = &answer["model_info"];
    let details = &answer["details"];
    let mut rows = Vec::new();
    let mut push = |label: &str, text: String| {
        if !text.is_empty() {
            rows.push(vec![label.to_owned(), text]);
        }
    };
    push("Remote model", text_of(answer, "remote_model").to_owned());
    push("Remote URL", text_of(answer, "remote_host").to_owned());
    let architecture = match text_of(info, "general.architecture") {
        "" => text_of(details, "family"),
        word => word,
    };
    push("architecture", architecture.to_owned());
    let parameters = match info["general.parameter_count"].as_u64() {
        Some(count) if count > 0 => human::number(count),
        _ => text_of(details, "parameter_size").to_owned(),
    };
    push("parameters", parameters);
    for (label, key) in [("context length", "context_length"), ("embedding length", "embedding_length")] {
        let count = info[format!("{architecture}.{key}")].as_u64().or_else(|| details[key].as_u64());
        push(label, count.filter(|count| *count > 0).map_or_else(String::new, |count| count.to_string()));
    }
    push("quantization", text_of(details, "quantization_level").to_owned());
    // Only our own server says this; a table of Ollama's answer is as Ollama prints it.
    if let Some(backend) = answer["backend"].as_str() {
        push("format", text_of(details, "format").to_owned());
        push("backend", backend.to_owned());
    }
    push("requires", text_of(answer, "requires").to_owned());
    rows
}

fn projector_rows(answer: &Value) -> Vec<Vec<String>> {
    let info = &answer["projector_info"];
    if !info.is_object() {
        return Vec::new();
    }
    let number = |key: &str| info[key].as_u64();
    let rows = [
        ("architecture", Some(text_of(info, "general.architecture").to_owned())),
        ("parameters", number("general.parameter_count").map(human::number)),
        ("embedding length", number("clip.vision.embedding_length").map(|count| count.to_string())),
        ("dimensions", number("clip.vision.projection_dim").map(|count| count.to_string())),
    ];
    rows.into_iter()
        .filter_map(|(label, text)| Some(vec![label.to_owned(), text.filter(|text| !text.is_empty())?]))
        .collect()
}

fn metadata_rows(answer: &Value) -> Vec<Vec<String>> {
    let Some(info) = answer["model_info"].as_object() else { return Vec::new() };
    let mut rows: Vec<Vec<String>> = info.iter().map(|(key, value)| vec![key.clone(), abbreviated(value)]).collect();
    rows.sort();
    rows
}

/// `[a b c ...+N more]` for an array, the bare text for a scalar.
fn abbreviated(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let shown: Vec<String> = items.iter().take(ARRAY_ITEMS_MAX).map(abbreviated).collect();
            match items.len().saturating_sub(ARRAY_ITEMS_MAX) {
                0 => format!("[{}]", shown.join(" ")),
                more => format!("[{} ...+{more} more]", shown.join(" ")),
            }
        }
        other => other.to_string(),
    }
}

fn text_rows(text: &str) -> Vec<Vec<String>> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut rows: Vec<Vec<String>> = lines.by_ref().take(TEXT_LINES_MAX).map(|line| vec![line.to_owned()]).collect();
    if lines.next().is_some() {
        rows.push(vec!["...".to_owned()]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sections_are_laid_out_byte_for_byte() {
        let answer = json!({
            "model_info": {"general.architecture": "llama", "general.parameter_count": 3_212_749_888u64,
                "llama.context_length": 131_072, "llama.embedding_length": 3072},
            "details": {"quantization_level": "Q4_K_M", "family": "llama"},
            "capabilities": ["completion", "tools"],
        });
        assert_eq!(
            sections_text(&answer),
            concat!(
                "  Model\n",
                "    architecture        llama     \n",
                "    parameters          3.2B      \n",
                "    context length      131072    \n",
                "    embedding length    3072      \n",
                "    quantization        Q4_K_M    \n",
                "\n",
                "  Capabilities\n",
                "    completion    \n",
                "    tools         \n",
                "\n",
            )
        );
    }

    #[test]
    fn the_template_in_use_is_shown_with_where_it_comes_from() {
        let answer = json!({"template": "{{ .Prompt }}", "template_in_use": "{{ messages }}\u{1b}[2J",
            "template_source": "the model's own files"});
        let text = sections_text(&answer);
        let section = "  Template\n    from the model's own files    \n    {{ messages }}\\u001b[2J";
        assert!(text.starts_with(section), "{text:?}");
        assert_eq!(template(&json!({"template": "{{ .Prompt }}"})), "{{ .Prompt }}");
    }

    #[test]
    fn long_texts_show_two_lines_and_say_so() {
        let answer = json!({"system": "a\n\nb\nc", "license": "one line", "parameters": "stop    \"x\"\nseed    1"});
        assert_eq!(
            sections_text(&answer),
            "  Parameters\n    stop    \"x\"    \n    seed    1      \n\n  System\n    a      \n    b      \n    ...    \n\n  License\n    one line    \n\n"
        );
    }

    #[test]
    fn metadata_is_sorted_and_arrays_are_cut() {
        let answer = json!({"model_info": {"b": [1, 2, 3, 4, 5], "a": "x"}, "tensors": [{"name": "t", "type": "F32", "shape": [2, 3]}]});
        let text = sections_text(&answer);
        assert!(text.contains("    a    x                     \n    b    [1 2 3 ...+2 more]    \n"), "{text}");
        assert!(text.contains("    t    F32    [2 3]    \n"), "{text}");
    }
}
