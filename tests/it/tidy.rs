//! What the house holds itself to, beyond what the compiler and clippy see: the rules of [`ollmlx_shape::rules`], where
//! each stands with its proof, limits of size and of cycles, and which crate may know which. `./dev shape` prints every
//! figure and every breach.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use ollmlx_shape::cycles::Cycle;
use ollmlx_shape::report::Report;
use ollmlx_shape::rules::{FILE_LINES_MAX, Offence, RULES};
use ollmlx_shape::{Workspace, root};

/// A figure and the most it may be. A limit is raised only by a commit that says why.
type Limit = (&'static str, usize, fn(&Report) -> Option<usize>);

const LIMITS: &[Limit] = &[
    ("lines of code of the scheduler", 3_550, |report| Some(report.room("supervisor/scheduler")?.code)),
    // Comments and blank lines among them.
    ("lines of the scheduler without tests", 4_900, |report| {
        Some(report.room("supervisor/scheduler")?.lines_without_tests)
    }),
    ("fields of the scheduler's `Model`", 12, |report| report.field_count("supervisor/src/scheduler/", "Model")),
    ("`impl Scheduler` outside of its file", 0, |report| Some(report.impl_count_elsewhere("Scheduler"))),
    ("methods that call each other in a circle over several files", 0, |report| {
        Some(report.method_cycles.iter().filter(|cycle| cycle.file_count > 1).count())
    }),
    // Two parsers and a weigher of schemas by recursive descent, each in one file.
    ("methods that call each other in a circle", 9, |report| Some(members(&report.method_cycles, ""))),
    ("rooms of the supervisor that name each other in a circle", 0, |report| Some(members(&report.room_cycles, ""))),
    ("files of the scheduler in a circle", 0, |report| Some(members(&report.file_cycles, "supervisor/src/scheduler/"))),
    // Target: fewer. A child that names its parent's types, and is named by it, is a circle too.
    ("files of all rooms in a circle", 52, |report| Some(members(&report.file_cycles, ""))),
    ("names that types of the supervisor share", 0, |report| Some(report.names_shared_in_supervisor.len())),
];

/// Lines of a function, from its signature to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;
const SCHEDULER_FUNCTION_LINES_MAX: usize = 60;

/// Functions that are longer today, with their length. None is added, none grows.
const LONG_FUNCTIONS: &[(&str, &str, usize)] = &[];

/// Breaches that are right, for good: file, what stands there, how often, why.
const EXCEPTED: &[(&str, &str, usize, &str)] = &[
    ("tests/fake-worker/main.rs", "std::thread::sleep", 3, "its script says how long it takes"),
    ("proto/kit/src/serve/link.rs", "std::thread::Builder::new", 1, "it reads until the process or the socket ends"),
    (
        "proto/kit/src/batch/prepare.rs",
        "std::thread::Builder::new",
        1,
        "its channel tells of its end, and nobody can end it",
    ),
    ("supervisor/src/server/watchdog.rs", "std::thread::Builder::new", 1, "it outlives everything that it watches"),
    ("supervisor/src/server/watchdog.rs", "std::sync::mpsc::channel", 1, "nobody ever sends"),
    ("supervisor/src/http/create.rs", "tokio::spawn", 1, "it ends with the creation that it tells of"),
    ("supervisor/src/http/ops.rs", "tokio::spawn", 1, "it ends with its client, or with the server"),
];

/// Breaches that are being mended: a file or folder, and what stands there. None is added; target: empty.
const KNOWN: &[(&str, &str)] = &[];

static WORKSPACE: LazyLock<Workspace> =
    LazyLock::new(|| Workspace::read(&root()).unwrap_or_else(|error| panic!("{error}")));
static REPORT: LazyLock<Report> = LazyLock::new(|| Report::of(&WORKSPACE));

/// Members of all cycles whose name begins so.
fn members(cycles: &[Cycle], start: &str) -> usize {
    cycles.iter().flat_map(|cycle| &cycle.members).filter(|member| member.starts_with(start)).count()
}

fn is_listed(offence: &Offence) -> bool {
    let excepted = EXCEPTED.iter().map(|(path, what, ..)| (path, what));
    let known = KNOWN.iter().map(|(path, what)| (path, what));
    excepted.chain(known).any(|(path, what)| offence.path.starts_with(path) && offence.what == **what)
}

fn assert_none(rule: &str, offenders: &[String]) {
    assert!(offenders.is_empty(), "{rule}:\n  {}", offenders.join("\n  "));
}

#[test]
fn tidy_every_rule_holds() {
    let mut offenders = Vec::new();
    for rule in RULES {
        let found = rule.offences(&WORKSPACE);
        offenders.extend(found.iter().filter(|it| !is_listed(it)).map(|it| format!("{it} ({})", rule.says)));
    }
    assert_none("breaches of the house rules", &offenders);
}

#[test]
fn row_41_the_wall_clock_decides_nothing() {
    let rule = RULES.iter().find(|rule| rule.says.starts_with("the wall clock")).expect("there is this rule");
    let offenders: Vec<String> = rule.offences(&WORKSPACE).iter().map(ToString::to_string).collect();
    assert_none(rule.says, &offenders);
}

#[test]
fn tidy_the_house_stays_within_its_limits() {
    let over = LIMITS.iter().filter_map(|(what, most, figure)| match figure(&REPORT) {
        Some(figure) if figure <= *most => None,
        Some(figure) => Some(format!("{what}: {figure}, at most {most}")),
        None => Some(format!("{what}: not found any more, so not measured")),
    });
    assert_none("limits that are passed (see `./dev shape`)", &over.collect::<Vec<_>>());
}

#[test]
fn tidy_no_function_is_longer_than_a_screen_or_two() {
    let mut offenders = Vec::new();
    for file in &WORKSPACE.files {
        let in_scheduler = file.room() == "supervisor/scheduler";
        let most = if in_scheduler { SCHEDULER_FUNCTION_LINES_MAX } else { FUNCTION_LINES_MAX };
        for function in file.functions.iter().filter(|function| !file.in_tests(*function.lines.start())) {
            let (title, lines) = (function.title(), function.line_count());
            let ratchet = LONG_FUNCTIONS.iter().find(|(path, name, _)| *path == file.path && *name == title);
            if lines > ratchet.map_or(most, |(_, _, lines)| *lines) {
                offenders.push(format!("(\"{}\", \"{title}\", {lines}),", file.path));
            }
        }
    }
    assert_none("functions that are too long", &offenders);
}

/// A list of exceptions that nobody needs any more would let the next breach in.
#[test]
fn tidy_no_exception_outlives_its_reason() {
    let found: Vec<Offence> = RULES.iter().flat_map(|rule| rule.offences(&WORKSPACE)).collect();
    let count = |path: &str, what: &str| found.iter().filter(|it| it.path.starts_with(path) && it.what == what).count();
    let mut offenders = Vec::new();
    for (path, what, times, _) in EXCEPTED {
        let times_found = count(path, what);
        if times_found != *times {
            offenders.push(format!("{path}: {what} is excepted {times} times and stands there {times_found} times"));
        }
    }
    let idle = KNOWN.iter().filter(|(path, what)| count(path, what) == 0);
    offenders.extend(idle.map(|(path, what)| format!("{path}: {what} is mended")));
    for (path, title, lines) in LONG_FUNCTIONS {
        let still = WORKSPACE
            .under(path)
            .flat_map(|file| &file.functions)
            .any(|it| it.title() == *title && it.line_count() == *lines);
        if !still {
            offenders.push(format!("{path}: {title} no longer has {lines} lines"));
        }
    }
    assert_none("lists above that say more than is needed, or less", &offenders);
}

#[test]
fn tidy_no_script_is_longer_than_anybody_reads() {
    let mut offenders = Vec::new();
    for extension in ["py", "mjs", "sh"] {
        for path in files(&root(), extension) {
            let line_count = read(&path).lines().count();
            if line_count > FILE_LINES_MAX {
                offenders.push(format!("{} has {line_count} lines", short(&path)));
            }
        }
    }
    assert_none("files over 800 lines", &offenders);
}

/// What a package must not depend on, by its manifest.
const STRANGERS: &[(&str, &[&str])] = &[
    ("proto/Cargo.toml", &["ollmlx-worker-kit", "ollmlx-supervisor", "tokio"]),
    ("proto/kit/Cargo.toml", &["ollmlx-supervisor", "tokio"]),
    ("worker-gguf/Cargo.toml", &["ollmlx-supervisor", "ollmlx-worker-mlx", "tokio", "hyper"]),
    ("worker-mlx/Cargo.toml", &["ollmlx-supervisor", "ollmlx-worker-gguf", "tokio", "hyper"]),
    (
        "supervisor/Cargo.toml",
        &["ollmlx-worker-kit", "ollmlx-worker-gguf", "ollmlx-worker-mlx", "llama-cpp-2", "llama-cpp-sys-2"],
    ),
    ("stress/Cargo.toml", &["ollmlx-worker-kit", "ollmlx-supervisor"]),
    ("tests/shape/Cargo.toml", &["ollmlx-proto", "ollmlx-worker-kit", "ollmlx-supervisor"]),
];

fn dependencies(manifest: &str) -> impl Iterator<Item = &str> {
    manifest.lines().map(|line| line.split(['.', '=', ' ']).next().unwrap_or_default())
}

#[test]
fn tidy_crates_depend_only_downwards() {
    let planted = "[dependencies]\nserde = \"1\"\ntokio.workspace = true\n";
    assert!(dependencies(planted).any(|name| name == "tokio"));
    let mut offenders = Vec::new();
    for (manifest, strangers) in STRANGERS {
        let text = read(&root().join(manifest));
        let found = dependencies(&text).filter(|name| strangers.contains(name));
        offenders.extend(found.map(|name| format!("{manifest}: {name}")));
    }
    assert_none("crates that depend on a stranger", &offenders);
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
