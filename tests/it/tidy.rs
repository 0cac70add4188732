//! House rules that no compiler knows: size of files, module docs, banned words, who may know whom, and where `unsafe`
//! may stand. Each rule reports all its offenders at once.

use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 800;

/// Words that must not stand in a source file, and whether tests may use them.
const BANNED: &[(&str, InTests)] = &[
    ("todo!(", InTests::Banned),
    ("unimplemented!(", InTests::Banned),
    ("dbg!(", InTests::Banned),
    ("unbounded_channel", InTests::Banned),
    ("thread::sleep", InTests::Free),
    ("#[ignore", InTests::Banned),
    ("#[should_panic", InTests::Banned),
    ("#[allow(", InTests::Banned),
];

#[derive(PartialEq, Eq)]
enum InTests {
    Banned,
    Free,
}

/// The rooms of the supervisor and what each may name with `crate::`. Everybody may name `telemetry`. `None` is
/// everything: the command line wires the house together.
const ROOMS: &[(&str, Option<&[&str]>)] = &[
    ("cli", None),
    ("config", Some(&[])),
    // `os` for the wall clock and for luck, which go into replies and decide nothing.
    ("http", Some(&["types", "dialect", "driver", "catalog", "config", "os"])),
    ("dialect", Some(&["types", "catalog"])),
    ("catalog", Some(&["os"])),
    ("scheduler", Some(&["types", "catalog"])),
    ("driver", Some(&["types", "scheduler", "worker", "catalog", "os"])),
    ("worker", Some(&["types", "os"])),
    ("types", Some(&["catalog"])),
    ("service", Some(&["os", "config"])),
    ("os", Some(&[])),
    ("telemetry", Some(&[])),
];

/// Worlds that a pure room must not touch.
const PURE: &[(&str, &[&str])] = &[
    ("types", &["tokio", "std::process", "std::fs", "std::thread", "std::env", "Instant::now", "SystemTime::now"]),
    ("scheduler", &["tokio", "std::process", "std::fs", "std::thread", "std::env", "Instant::now", "SystemTime::now"]),
    ("dialect", &["tokio", "std::process", "std::fs", "std::thread", "std::env", "Instant::now"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace is there")
}

/// All files under the folder with this extension, build outputs left out.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder can be listed") {
            let path = entry.expect("an entry can be read").path();
            let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            if path.is_dir() && !name.starts_with('.') && !matches!(name.as_str(), "target" | "node_modules" | "shared")
            {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn short(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn sources() -> Vec<(String, String)> {
    let this = short(Path::new(file!()));
    let all = files(&root(), "rs").into_iter().map(|path| (short(&path), read(&path)));
    all.filter(|(path, _)| !this.ends_with(path.as_str()) && !path.ends_with("tests/it/tidy.rs")).collect()
}

/// The lines of code: comments and strings that hold a word in prose are not meant, so comments go.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter_map(|(index, line)| {
        let line = line.trim_start();
        (!line.starts_with("//")).then_some((index + 1, line))
    })
}

/// Number of the line where the file's own tests begin.
fn tests_begin(text: &str) -> usize {
    text.lines().position(|line| line.trim() == "#[cfg(test)]").map_or(usize::MAX, |index| index + 1)
}

fn assert_none(rule: &str, offenders: &[String]) {
    assert!(offenders.is_empty(), "{rule}:\n  {}", offenders.join("\n  "));
}

#[test]
fn tidy_no_file_is_longer_than_anybody_reads() {
    let mut offenders = Vec::new();
    for extension in ["rs", "py", "mjs", "sh"] {
        for path in files(&root(), extension) {
            let line_count = read(&path).lines().count();
            if line_count > FILE_LINES_MAX {
                offenders.push(format!("{} has {line_count} lines", short(&path)));
            }
        }
    }
    assert_none("files over 800 lines", &offenders);
}

#[test]
fn tidy_every_file_says_what_it_is_for() {
    let offenders: Vec<String> = sources()
        .into_iter()
        .filter(|(_, text)| !text.lines().next().is_some_and(|line| line.starts_with("//!") && line.len() > 8))
        .map(|(path, _)| path)
        .collect();
    assert_none("files without a module doc", &offenders);
}

#[test]
fn tidy_no_unfinished_or_banned_words() {
    let mut offenders = Vec::new();
    for (path, text) in sources() {
        let tests_begin = tests_begin(&text);
        let all_tests = path.starts_with("tests/") || path.starts_with("stress/");
        for (number, line) in code_lines(&text) {
            for (word, in_tests) in BANNED {
                let free = *in_tests == InTests::Free && (all_tests || number > tests_begin);
                if line.contains(word) && !free {
                    offenders.push(format!("{path}:{number}: {word}"));
                }
            }
        }
    }
    assert_none("banned words", &offenders);
}

#[test]
fn tidy_unsafe_stands_only_in_ffi() {
    let mut offenders = Vec::new();
    for (path, text) in sources() {
        if path.starts_with("worker-") && path.contains("/src/ffi") {
            continue;
        }
        for (number, line) in code_lines(&text) {
            if ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe trait"]
                .iter()
                .any(|word| line.contains(word))
            {
                offenders.push(format!("{path}:{number}: {line}"));
            }
        }
    }
    assert_none("unsafe outside worker-*/src/ffi", &offenders);
}

/// One use of a path that begins with `crate::`.
#[derive(Debug, PartialEq, Eq)]
struct CratePath {
    line: usize,
    /// The first name.
    room: String,
    /// Last names of what follows; empty where nothing follows.
    leaves: Vec<String>,
}

/// All paths of a text that begin with `crate::`, those in braces and over several lines included.
fn crate_paths(text: &str) -> Vec<CratePath> {
    let kept = |line: &'_ str| if line.trim_start().starts_with("//") { String::new() } else { line.to_owned() };
    let text: String = text.lines().map(|line| kept(line) + "\n").collect();
    let mut found = Vec::new();
    for (at, word) in text.match_indices("crate::") {
        // `ollmlx_crate::` is not ours.
        if text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let line = text[..at].matches('\n').count() + 1;
        let tree = path_tree(&text[at + word.len()..]);
        let branches = match tree.strip_prefix('{') {
            Some(inside) => split_branches(inside.strip_suffix('}').unwrap_or(inside)),
            None => vec![tree],
        };
        for branch in branches {
            let (room, rest) = branch.split_once("::").unwrap_or((branch, ""));
            let leaves = match rest.strip_prefix('{') {
                Some(inside) => split_branches(inside.strip_suffix('}').unwrap_or(inside)),
                None => vec![rest],
            };
            let leaves = leaves.into_iter().map(|leaf| leaf.split("::").next().unwrap_or_default().trim().to_owned());
            let leaves = leaves.filter(|leaf| !leaf.is_empty()).collect();
            found.push(CratePath { line, room: room.trim().to_owned(), leaves });
        }
    }
    found
}

/// The path or tree of paths at the start of a text.
fn path_tree(text: &str) -> &str {
    let mut depth = 0usize;
    for (at, character) in text.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth <= 1 => return &text[..at + depth],
            '}' => depth -= 1,
            ':' | '_' => {}
            _ if depth > 0 || character.is_alphanumeric() => {}
            _ => return &text[..at],
        }
    }
    text
}

/// Splits at the commas that stand outside inner braces.
fn split_branches(text: &str) -> Vec<&str> {
    let mut depth = 0usize;
    let is_split = |character: char| {
        match character {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        character == ',' && depth == 0
    };
    text.split(is_split).map(str::trim).filter(|branch| !branch.is_empty()).collect()
}

#[test]
fn tidy_itself_reads_every_form_of_a_path() {
    let text =
        "use crate::a::B;\n// crate::no\nuse crate::{\n    c::{D, e::F},\n    g,\n};\nfn x(y: &crate::h::I) {}\n";
    let rooms: Vec<(usize, String, String)> =
        crate_paths(text).into_iter().map(|path| (path.line, path.room, path.leaves.join(" "))).collect();
    let expect = [(1, "a", "B"), (3, "c", "D e"), (3, "g", ""), (7, "h", "I")];
    assert_eq!(rooms, expect.map(|(line, room, leaves)| (line, room.to_owned(), leaves.to_owned())));
}

#[test]
fn tidy_rooms_know_only_their_neighbours() {
    let folder = root().join("supervisor/src");
    let mut offenders = Vec::new();
    for path in files(&folder, "rs") {
        let inside = path.strip_prefix(&folder).expect("it is inside").display().to_string();
        let room = inside.split(['/', '.']).next().unwrap_or_default().to_owned();
        if matches!(room.as_str(), "lib" | "main") || inside.ends_with("tests.rs") {
            continue;
        }
        let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            offenders.push(format!("{inside}: a room without an entry in the table"));
            continue;
        };
        let Some(allowed) = allowed else { continue };
        let text = read(&path);
        let tests_begin = tests_begin(&text);
        for CratePath { line, room: name, .. } in crate_paths(&text) {
            if line >= tests_begin {
                continue;
            }
            if name != room && name != "telemetry" && !allowed.contains(&name.as_str()) {
                offenders.push(format!("{inside}:{line}: {room} names {name}"));
            }
        }
    }
    assert_none("rooms that know too much (architecture 3.3)", &offenders);
}

#[test]
fn tidy_pure_rooms_touch_no_world() {
    let mut offenders = Vec::new();
    for (path, text) in sources() {
        let Some((_, worlds)) = PURE.iter().find(|(room, _)| path.starts_with(&format!("supervisor/src/{room}/")))
        else {
            continue;
        };
        // A module of tests reads its cases from files.
        if path.ends_with("/golden.rs") {
            continue;
        }
        let tests_begin = tests_begin(&text);
        for (number, line) in code_lines(&text).filter(|(number, _)| *number < tests_begin) {
            offenders.extend(
                worlds.iter().filter(|world| line.contains(*world)).map(|world| format!("{path}:{number}: {world}")),
            );
        }
    }
    assert_none("pure rooms that touch the world", &offenders);
}

#[test]
fn tidy_crates_depend_only_downwards() {
    let rules: &[(&str, &[&str])] = &[
        ("proto/Cargo.toml", &["ollmlx-worker-kit", "ollmlx-supervisor", "tokio"]),
        ("proto/kit/Cargo.toml", &["ollmlx-supervisor", "tokio"]),
        ("worker-gguf/Cargo.toml", &["ollmlx-supervisor", "ollmlx-worker-mlx", "tokio", "hyper"]),
        ("worker-mlx/Cargo.toml", &["ollmlx-supervisor", "ollmlx-worker-gguf", "tokio", "hyper"]),
        ("supervisor/Cargo.toml", &["ollmlx-worker-kit", "ollmlx-worker-gguf", "ollmlx-worker-mlx", "llama-cpp-2"]),
        ("stress/Cargo.toml", &["ollmlx-worker-kit", "ollmlx-supervisor"]),
    ];
    let mut offenders = Vec::new();
    for (manifest, strangers) in rules {
        let path = root().join(manifest);
        if !path.exists() {
            continue;
        }
        for line in read(&path).lines() {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            if strangers.contains(&name) {
                offenders.push(format!("{manifest}: {name}"));
            }
        }
    }
    assert_none("crates that depend on a stranger", &offenders);
}

#[test]
fn row_41_the_wall_clock_decides_nothing() {
    let mut offenders = Vec::new();
    for (path, text) in sources().into_iter().filter(|(path, _)| !path.starts_with("tests/")) {
        let tests_begin = tests_begin(&text);
        for (number, line) in code_lines(&text).filter(|(number, _)| *number < tests_begin) {
            if line.contains("SystemTime::now") && !path.starts_with("supervisor/src/os/") {
                offenders.push(format!("{path}:{number}: {line}"));
            }
        }
    }
    assert_none("the wall clock outside os/, which only dates things with it", &offenders);
}
