//! The house rules that no compiler knows. Each is a filter over the parsed sources and carries its own proof: sources
//! that break it, and what must be found there. `tests/it/tidy.rs` applies them to the workspace.
//!
//! A rule that isn't here isn't checked; what clippy or Cargo check is not repeated (`clippy.toml`, `deny.toml`).

use crate::{Call, Dropped, File, Workspace, is_under};

/// A file is split before anybody has to scroll this far.
pub const FILE_LINES_MAX: usize = 800;

/// The rooms of the supervisor, from the bottom up, and what each may name with `crate::`. Everybody may name
/// `telemetry` and `limits`, and what the root itself defines.
pub const ROOMS: &[(&str, &[&str])] = &[
    ("telemetry", &[]),
    ("limits", &[]),
    ("os", &[]),
    ("config", &[]),
    ("catalog", &["os"]),
    ("types", &["catalog"]),
    ("scheduler", &["types", "catalog"]),
    ("dialect", &["types", "catalog"]),
    ("worker", &["types", "os"]),
    ("driver", &["types", "scheduler", "worker", "catalog", "os"]),
    // `os` for the wall clock and for luck, which go into replies and decide nothing.
    ("http", &["types", "dialect", "driver", "catalog", "config", "os"]),
    ("server", &["types", "scheduler", "driver", "http", "catalog", "config", "os"]),
    // Commands talk to a server over HTTP like any client; `serve` hands over to the server's room.
    ("cli", &["server", "types", "catalog", "config", "os"]),
];

/// Rooms that only compute, and the outside world, which they reach by values alone.
const PURE_ROOMS: &[&str] = &["types", "scheduler", "dialect"];
const WORLD: &[&str] = &[
    "tokio",
    "std::process",
    "std::fs",
    "std::net",
    "std::thread",
    "std::env",
    "std::time::Instant::now",
    "std::time::SystemTime::now",
];

/// Functions that start a task or a thread.
const SPAWNS: &[&str] = &[
    "tokio::spawn",
    "tokio::task::spawn",
    "tokio::task::spawn_blocking",
    "tokio::task::spawn_local",
    "std::thread::spawn",
];

/// A breach of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offence {
    /// The file.
    pub path: String,
    /// The line.
    pub line: usize,
    /// What stands there.
    pub what: String,
}

impl std::fmt::Display for Offence {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// One rule.
pub struct Rule {
    /// What holds.
    pub says: &'static str,
    /// Where it doesn't.
    pub find: fn(&Workspace, &File) -> Vec<Offence>,
    /// Sources that break it, and each line of them where that must be found; the others must not be.
    pub planted: &'static [(&'static str, &'static str, &'static [usize])],
}

impl Rule {
    /// All breaches, in the order of the files.
    #[must_use]
    pub fn offences(&self, workspace: &Workspace) -> Vec<Offence> {
        workspace.files.iter().flat_map(|file| (self.find)(workspace, file)).collect()
    }
}

/// All rules.
pub const RULES: &[Rule] = &[
    Rule {
        says: "a file begins with a module doc",
        find: |_, file| if file.documented { Vec::new() } else { vec![offence(file, 1, "no module doc")] },
        planted: &[
            ("proto/src/a.rs", "// A comment.\nfn f() {}\n", &[1]),
            ("proto/src/b.rs", "//! What it is for.\nfn f() {}\n", &[]),
        ],
    },
    Rule {
        says: "a file has at most 800 lines",
        find: |_, file| {
            let long = file.line_count > FILE_LINES_MAX;
            if long { vec![offence(file, file.line_count, "a file too long")] } else { Vec::new() }
        },
        // The test below makes it long enough.
        planted: &[],
    },
    Rule {
        says: "nothing is unfinished",
        find: |_, file| named(file, &file.macros, |name| matches!(name, "todo" | "unimplemented" | "dbg")),
        planted: &[(
            "proto/src/a.rs",
            "#[cfg(test)]\nmod tests {\n    fn t() { dbg!(1); }\n}\nfn f() { vec![todo!()]; }\nfn g() { std::unimplemented!() }\n",
            &[3, 5, 6],
        )],
    },
    Rule {
        says: "a lint is expected with a reason, not allowed; a test is neither ignored nor meant to panic",
        find: |_, file| {
            let banned = |name: &str| matches!(name, "allow" | "ignore" | "should_panic");
            let hidden = |text: &str| text.contains("allow (") || text.contains("allow(");
            let found =
                file.attributes.iter().filter(|it| banned(&it.name) || it.name == "cfg_attr" && hidden(&it.text));
            found.map(|it| offence(file, it.line, &it.name)).collect()
        },
        planted: &[(
            "proto/src/a.rs",
            "#[allow(dead_code)]\nfn f() {}\n#[test]\n#[ignore]\nfn g() {}\n#[test]\n#[should_panic(expected = \"x\")]\nfn h() {}\n#[cfg_attr(unix, allow(dead_code))]\nfn i() {}\n#[expect(dead_code, reason = \"allow(x)\")]\nfn j() {}\n",
            &[1, 4, 7, 9],
        )],
    },
    Rule {
        says: "`unsafe` stands only in worker-*/src/ffi",
        find: |_, file| {
            let is_ffi = file.path.contains("/src/ffi/") || file.path.ends_with("/src/ffi.rs");
            if file.path.starts_with("worker-") && is_ffi {
                return Vec::new();
            }
            let attributes = file.attributes.iter().filter(|it| it.name == "unsafe");
            let mut found = named(file, &file.keywords, |word| word == "unsafe");
            found.extend(attributes.map(|it| offence(file, it.line, &it.name)));
            found
        },
        planted: &[
            (
                "proto/src/a.rs",
                "// unsafe {\nfn f() { assert!(unsafe { g() }) }\nunsafe fn g() -> bool { true }\n",
                &[2, 3],
            ),
            ("worker-mlx/src/ffi/mod.rs", "unsafe fn g() {}\n", &[]),
            ("worker-mlx/src/ffi_not.rs", "#[unsafe(no_mangle)]\nfn g() {}\n", &[1]),
        ],
    },
    Rule {
        says: "no channel of the product is unbounded",
        find: |_, file| {
            let unbounded = ["tokio::sync::mpsc::unbounded_channel", "std::sync::mpsc::channel"];
            calls(file, |call| unbounded.contains(&call.path.as_str()) && !file.in_tests(call.line))
        },
        planted: &[(
            "supervisor/src/driver.rs",
            "use std::sync::mpsc;\nuse tokio::sync::mpsc::{self as async_mpsc, unbounded_channel};\nfn f() {\n    mpsc::channel::<u8>();\n    unbounded_channel();\n    async_mpsc::unbounded_channel();\n    async_mpsc::channel(8);\n    mpsc::sync_channel(8);\n}\n",
            &[4, 5, 6],
        )],
    },
    Rule {
        says: "a room of the supervisor names only what stands below it (`ROOMS`)",
        find: rooms,
        planted: &[
            (
                "supervisor/src/scheduler/queue.rs",
                "#[cfg(test)]\nuse crate::driver::Handle;\nuse crate::{\n    catalog::ModelRef,\n    http,\n};\nfn f() { assert!(crate::driver::g()) }\n#[cfg(test)]\nmod tests {\n    use crate::cli::A;\n}\nfn g(x: super::super::worker::X) {}\n",
                &[5, 7, 12],
            ),
            ("supervisor/src/attic/mod.rs", "//! A new room.\n", &[1]),
            ("supervisor/src/worker/mod.rs", "use std::fmt;\nuse super::*;\n", &[2]),
            (
                "supervisor/src/cli/list.rs",
                "use crate::scheduler::Mono;\nuse crate::config::Config;\nuse crate::VERSION;\n",
                &[1],
            ),
        ],
    },
    Rule {
        says: "only the driver holds a scheduler",
        find: |_, file| {
            let is_meant = file.path.starts_with("supervisor/src/")
                && !["supervisor/scheduler", "supervisor/driver"].contains(&file.room().as_str());
            let found = product(file, &file.names, |name| is_under(name, "crate::scheduler::Scheduler"));
            if is_meant { found } else { Vec::new() }
        },
        planted: &[
            ("supervisor/src/http/mod.rs", "use crate::scheduler::Scheduler;\n", &[1]),
            ("supervisor/src/driver/task.rs", "use crate::scheduler::Scheduler;\n", &[]),
        ],
    },
    Rule {
        says: "no dialect knows another: a folder of dialect/ names no other one",
        find: dialects,
        planted: &[
            (
                "supervisor/src/dialect/openai/request.rs",
                "use super::super::ollama::Thing;\nuse crate::dialect::{json, anthropic::X};\nuse crate::dialect::openai::Y;\n",
                &[1, 2],
            ),
            ("supervisor/src/dialect/openai/mod.rs", "fn f() { vec![crate::dialect::ollama::f()]; }\n", &[1]),
            ("supervisor/src/dialect/ollama/mod.rs", "use super::json::Z;\n", &[]),
            ("supervisor/src/dialect/anthropic/mod.rs", "use crate::dialect::*;\n", &[1]),
            ("supervisor/src/dialect/mod.rs", "mod ollama;\npub use ollama::X;\n", &[]),
        ],
    },
    Rule {
        says: "a pure room has no clock, no process, no file, no task",
        find: |_, file| {
            let is_pure = PURE_ROOMS.iter().any(|room| file.room() == format!("supervisor/{room}"));
            if !is_pure {
                return Vec::new();
            }
            let mut found = product(file, &file.names, |name| WORLD.iter().any(|world| is_under(name, world)));
            found.extend(product(file, &file.keywords, |word| word == "async"));
            found
        },
        planted: &[
            (
                "supervisor/src/scheduler/evict.rs",
                "use std::time::{Duration, Instant};\n#[cfg(test)]\nuse std::fs;\nfn f() -> Instant { Instant::now() }\nasync fn g() {}\nuse std::{fs, fmt};\n",
                &[4, 5, 6],
            ),
            ("supervisor/src/dialect/mod.rs", "fn f(x: tokio::task::Id) {}\n", &[1]),
            ("supervisor/src/http/mod.rs", "use tokio::net::TcpStream;\n", &[]),
        ],
    },
    Rule {
        says: "what clippy.toml keeps to os/ and config/ (clock, processes, environment) is excepted nowhere else",
        find: |_, file| {
            let may = ["supervisor/os", "supervisor/config"].contains(&file.room().as_str());
            let found = file.attributes.iter().filter(|it| it.text.contains("disallowed_methods"));
            let found = found.filter(|it| !may && !file.in_tests(it.line));
            found.map(|it| offence(file, it.line, "disallowed_methods")).collect()
        },
        planted: &[
            ("supervisor/src/http/mod.rs", "#![expect(clippy::disallowed_methods, reason = \"x\")]\n", &[1]),
            ("supervisor/src/os/clock.rs", "#[expect(clippy::disallowed_methods, reason = \"x\")]\nfn f() {}\n", &[]),
        ],
    },
    Rule {
        says: "the wall clock is read in os/ alone, and decides nothing",
        find: |_, file| {
            let found = product(file, &file.names, |name| name == "std::time::SystemTime::now");
            if file.room() == "supervisor/os" { Vec::new() } else { found }
        },
        planted: &[
            (
                "worker-gguf/src/a.rs",
                "use std::time::SystemTime;\nfn f() { format!(\"{:?}\", SystemTime::now()); }\n",
                &[2],
            ),
            ("supervisor/src/os/wall.rs", "fn f() { std::time::SystemTime::now(); }\n", &[]),
        ],
    },
    Rule {
        says: "a span of time has a name: `Duration::from_secs(5)` stands in a constant or in a test",
        find: |_, file| {
            let in_constant = |line: usize| file.constants.iter().any(|lines| lines.contains(&line));
            let is_span =
                |path: &str| path.starts_with("std::time::Duration::from_") || path == "std::time::Duration::new";
            calls(file, |call| {
                call.literal && is_span(&call.path) && !in_constant(call.line) && !file.in_tests(call.line)
            })
        },
        planted: &[(
            "supervisor/src/http/body.rs",
            "use std::time::Duration;\nconst A: Duration = Duration::from_secs(5);\nfn f(ms: u64) {\n    g(Duration::from_millis(1_500));\n    g(Duration::from_millis(ms));\n    tokio::select! { () = h(std::time::Duration::new(0, 5)) => {} }\n}\n#[test]\nfn t() { g(Duration::from_secs(1)) }\nfn k() { g(Duration::from_secs(1)) }\n",
            &[4, 6, 10],
        )],
    },
    Rule {
        says: "no task and no thread is detached: somebody keeps its handle",
        find: |_, file| {
            let found = file.dropped.iter().filter(|it| is_detached(it) && !file.in_tests(it.line));
            found.map(|it| offence(file, it.line, &it.head)).collect()
        },
        planted: &[(
            "supervisor/src/http/ops.rs",
            "use std::thread;\nasync fn f() -> Result<(), E> {\n    tokio::spawn(g());\n    let _ = tokio::task::spawn_blocking(h);\n    let _kept = thread::Builder::new().name(n).spawn(h)?;\n    tokio::select! { _ = x => { drop(thread::spawn(h)); } }\n    tokio::spawn(g()).await;\n    let task = tokio::spawn(g());\n    tasks.spawn(g());\n    task.await\n}\n",
            &[3, 4, 5, 6],
        )],
    },
    Rule {
        says: "a thread of the product waits for something, it does not sleep",
        find: |_, file| {
            let is_product = !file.path.starts_with("stress/");
            calls(file, |call| call.path == "std::thread::sleep" && is_product && !file.in_tests(call.line))
        },
        planted: &[("proto/src/a.rs", "use std::thread::sleep;\nfn f() { sleep(A); g(B); }\n", &[2])],
    },
    Rule {
        says: "a test waits for a sign, it does not sleep",
        find: |_, file| {
            let is_sleep = |path: &str| ["std::thread::sleep", "tokio::time::sleep"].contains(&path);
            calls(file, |call| is_sleep(&call.path) && file.in_tests(call.line))
        },
        planted: &[(
            "proto/src/a.rs",
            "fn f() {}\n#[cfg(test)]\nmod tests {\n    #[test]\n    fn t() { std::thread::sleep(A); }\n    async fn u() { tokio::time::sleep(A).await; }\n}\n",
            &[5, 6],
        )],
    },
];

fn offence(file: &File, line: usize, what: &str) -> Offence {
    Offence { path: file.path.clone(), line, what: what.to_owned() }
}

fn named(file: &File, spots: &[crate::Spot], is_meant: impl Fn(&str) -> bool) -> Vec<Offence> {
    spots.iter().filter(|spot| is_meant(&spot.name)).map(|spot| offence(file, spot.line, &spot.name)).collect()
}

/// As [`named`], tests left out.
fn product(file: &File, spots: &[crate::Spot], is_meant: impl Fn(&str) -> bool) -> Vec<Offence> {
    let mut found = named(file, spots, is_meant);
    found.retain(|it| !file.in_tests(it.line));
    found
}

fn calls(file: &File, is_meant: impl Fn(&Call) -> bool) -> Vec<Offence> {
    file.calls.iter().filter(|call| is_meant(call)).map(|call| offence(file, call.line, &call.path)).collect()
}

/// Imports of everything from this module, which hide what is named.
fn globs(file: &File, module: &str) -> Vec<Offence> {
    let globs = file.imports.iter().filter(|it| it.alias == "*" && it.path == module && !file.in_tests(it.line));
    globs.map(|it| offence(file, it.line, &format!("use {module}::*"))).collect()
}

fn is_detached(dropped: &Dropped) -> bool {
    let ended = dropped.methods.iter().any(|method| matches!(method.as_str(), "await" | "join"));
    let builds = dropped.head == "std::thread::Builder::new" && dropped.methods.iter().any(|it| it == "spawn");
    !ended && (builds || SPAWNS.contains(&dropped.head.as_str()))
}

fn rooms(_: &Workspace, file: &File) -> Vec<Offence> {
    let own = file.module.split("::").nth(1);
    let (true, Some(own)) = (file.path.starts_with("supervisor/src/"), own) else { return Vec::new() };
    let Some((_, below)) = ROOMS.iter().find(|(room, _)| *room == own) else {
        return vec![offence(file, 1, "a room that `ROOMS` doesn't have")];
    };
    let mut found = globs(file, "crate");
    for name in file.names.iter().filter(|name| !file.in_tests(name.line)) {
        let mut names = name.name.split("::");
        let (Some("crate"), Some(other)) = (names.next(), names.next()) else { continue };
        let is_room = ROOMS.iter().any(|(room, _)| *room == other);
        if is_room && other != own && !matches!(other, "telemetry" | "limits") && !below.contains(&other) {
            found.push(offence(file, name.line, &format!("{own} names {other}")));
        }
    }
    // Once for each room is enough to go and look.
    let mut seen = std::collections::BTreeSet::new();
    found.retain(|it| seen.insert(it.what.clone()));
    found
}

fn dialects(workspace: &Workspace, file: &File) -> Vec<Offence> {
    const FOLDER: &str = "supervisor/src/dialect/";
    let Some((own, _)) = file.path.strip_prefix(FOLDER).and_then(|inside| inside.split_once('/')) else {
        return Vec::new();
    };
    let mut found = globs(file, "crate::dialect");
    for name in file.names.iter().filter(|name| !file.in_tests(name.line)) {
        let other = name.name.strip_prefix("crate::dialect::").and_then(|rest| rest.split("::").next());
        let other =
            other.filter(|other| *other != own && workspace.under(&format!("{FOLDER}{other}/")).next().is_some());
        found.extend(other.map(|other| offence(file, name.line, &format!("{own} names {other}"))));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_rule_is_blind_and_none_sees_ghosts() {
        for rule in RULES.iter().filter(|rule| !rule.says.contains("800 lines")) {
            assert!(!rule.planted.is_empty(), "{}: nothing is planted", rule.says);
            let sources: Vec<(&str, &str)> = rule.planted.iter().map(|(path, text, _)| (*path, *text)).collect();
            let found = rule.offences(&Workspace::of(&sources).unwrap());
            for (path, _, lines) in rule.planted {
                let here = found.iter().filter(|offence| offence.path == *path).map(|offence| offence.line);
                let here: std::collections::BTreeSet<usize> = here.collect();
                assert_eq!(here.into_iter().collect::<Vec<_>>(), *lines, "{}, in {path}", rule.says);
            }
        }
    }

    #[test]
    fn a_long_file_is_found_from_one_line_too_many_on() {
        let rule = RULES.iter().find(|rule| rule.says.contains("800 lines")).unwrap();
        let found = |count: usize| {
            let workspace = Workspace::of(&[("proto/src/a.rs", "//\n".repeat(count))]).unwrap();
            rule.offences(&workspace).len()
        };
        assert_eq!((found(FILE_LINES_MAX), found(FILE_LINES_MAX + 1)), (0, 1));
    }

    #[test]
    fn a_file_reached_through_a_test_module_is_tests() {
        let sources = [
            ("proto/src/a.rs", "#[cfg(all(test, unix))]\nmod b;\nmod c;\n"),
            ("proto/src/a/b.rs", "mod d;\n"),
            ("proto/src/a/b/d.rs", "fn f() {}\n"),
            ("proto/src/a/c.rs", "fn f() {}\n"),
        ];
        let workspace = Workspace::of(&sources).unwrap();
        let only_tests: Vec<bool> = workspace.files.iter().map(|file| file.only_tests).collect();
        assert_eq!(only_tests, [false, true, true, false]);
        assert_eq!(workspace.files[0].product_line_count(), 1);
    }
}
