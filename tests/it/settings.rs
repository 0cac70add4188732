//! Every setting does something: it is read, handed on, and read where it arrives.
//!
//! A scan of the sources, since public fields that nobody reads are no warning of the compiler. It follows a setting along
//! its stations ([`STATIONS`]): the table, the valid settings, what the door and the workers get of them.

use std::fs;
use std::path::{Path, PathBuf};

/// A struct that carries settings: its file, its name, who reads it (folders or files), and what it is called there.
struct Station {
    file: &'static str,
    name: &'static str,
    readers: &'static [&'static str],
    receivers: &'static [&'static str],
}

const STATIONS: &[Station] = &[
    Station {
        file: "supervisor/src/config/mod.rs",
        name: "Config",
        // The settings themselves put some of them together, and are read by that name then.
        readers: &["supervisor/src"],
        receivers: &["config", "settings", "self"],
    },
    Station {
        file: "supervisor/src/http/config.rs",
        name: "HttpConfig",
        readers: &["supervisor/src/http"],
        receivers: &["config"],
    },
    Station {
        file: "supervisor/src/catalog/mod.rs",
        name: "CatalogConfig",
        readers: &["supervisor/src/catalog"],
        receivers: &["config"],
    },
    Station {
        file: "proto/src/control.rs",
        name: "LoadSpec",
        readers: &["worker-gguf/src", "worker-mlx/src"],
        receivers: &["spec", "load"],
    },
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The code of a file or of all files below a folder, tests left out.
fn code(path: &Path) -> Vec<String> {
    let mut files = vec![path.to_owned()];
    let mut texts = Vec::new();
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            texts.push(read(&path));
        }
    }
    texts
}

/// The names of a struct's public fields.
fn fields<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let start = text.find(&format!("pub struct {name} {{")).unwrap_or_else(|| panic!("there is no struct {name}"));
    let body = text[start..].split("\n}").next().unwrap_or_default();
    let field = |line: &'a str| line.trim_start().strip_prefix("pub ")?.split_once(':').map(|(field, _)| field);
    body.lines().skip(1).filter_map(field).collect()
}

/// Whether `receiver.field` stands in a text, and is not the beginning of a longer name or a call.
fn is_read(text: &str, receiver: &str, field: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let wanted = format!("{receiver}.{field}");
    text.match_indices(&wanted).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + wanted.len()..]);
        !before.ends_with(is_name) && !after.starts_with(is_name) && !after.starts_with('(')
    })
}

/// The fields of a struct that none of the texts reads by any of these names.
fn unread<'a>(declaration: &'a str, name: &str, texts: &[String], receivers: &[&str]) -> Vec<&'a str> {
    // rustfmt may put a field on a line of its own.
    let texts: Vec<String> =
        texts.iter().map(|text| text.lines().map(str::trim).collect::<Vec<_>>().join(" ").replace(" .", ".")).collect();
    let anywhere =
        |field: &str| texts.iter().any(|text| receivers.iter().any(|receiver| is_read(text, receiver, field)));
    fields(declaration, name).into_iter().filter(|field| !anywhere(field)).collect()
}

/// The constants of the table that are not read where settings are.
fn unread_knobs<'a>(table: &'a str, reader: &str) -> Vec<&'a str> {
    let names = table.lines().filter_map(|line| line.strip_prefix("pub const ")?.split_once(": Knob"));
    names.map(|(name, _)| name).filter(|name| !reader.contains(&format!("(&table::{name}"))).collect()
}

#[test]
fn every_setting_is_read_at_each_of_its_stations() {
    for Station { file, name, readers, receivers } in STATIONS {
        let texts: Vec<String> = readers.iter().flat_map(|reader| code(&root().join(reader))).collect();
        let declaration = read(&root().join(file));
        assert!(fields(&declaration, name).len() > 4, "{file}: {name} is not found any more");
        assert_eq!(unread(&declaration, name, &texts, receivers), Vec::<&str>::new(), "nobody reads these of {name}");
    }
}

#[test]
fn every_row_of_the_table_is_read() {
    let folder = root().join("supervisor/src/config");
    let reader: String = ["mod.rs", "manager.rs"].iter().map(|file| read(&folder.join(file))).collect();
    let table = read(&folder.join("table.rs"));
    assert_eq!(unread_knobs(&table, &reader), Vec::<&str>::new(), "rows that no setting is read from");
}

#[test]
fn a_setting_that_nobody_reads_is_found() {
    let declaration = "pub struct Config {\n    /// One.\n    pub flash: bool,\n    pub flash_attention: bool,\n}\n";
    let found = |text: &str| unread(declaration, "Config", &[text.to_owned()], &["config"]);
    assert_eq!(found("x(config.flash_attention)"), ["flash"], "a longer name is another one");
    assert_eq!(found("config\n    .flash_attention; config.flash"), Vec::<&str>::new());
    assert_eq!(found("other_config.flash_attention; config.flash()"), ["flash", "flash_attention"]);
    let table = "pub const HOST: Knob = knob(\npub const NEW: Knob = knob(\n";
    assert_eq!(unread_knobs(table, "reader.read(&table::HOST, parse)"), ["NEW"]);
}
