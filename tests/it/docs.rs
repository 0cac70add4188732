//! The words for people, held against the source: paths exist, paragraphs can be read, every fault is proven or told of,
//! and tables that are made from code are what the code says. Each rule reports all its offenders at once.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ollmlx_proto::{Failure, FailureKind};
use ollmlx_supervisor::config::table;
use ollmlx_supervisor::limits;
use ollmlx_supervisor::types::Cause;

const README_LINES_MAX: usize = 150;
const PARAGRAPH_WORDS_MAX: usize = 100;
/// Rows of `docs/faults.md`.
const ROWS: std::ops::RangeInclusive<u32> = 1..=82;
/// What a word begins with that means a file or folder of this repository.
const OURS: &[&str] = &[
    "supervisor/",
    "proto/",
    "worker-gguf/",
    "worker-mlx/",
    "tests/",
    "stress/",
    "fuzz/",
    "docs/",
    ".ci/",
    ".github/",
    "./dev",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace is there")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Paths, from the root, of all files below a folder that end so; build outputs are left out.
fn files(folder: &str, ends: &[&str]) -> Vec<String> {
    let (root, mut found) = (root(), Vec::new());
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder can be listed") {
            let path = entry.expect("an entry can be read").path();
            let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            let is_output = name.starts_with('.') || matches!(name.as_str(), "target" | "node_modules" | "shared");
            if path.is_dir() && !is_output {
                folders.push(path);
            } else if ends.iter().any(|end| name.ends_with(end)) {
                found.push(path.strip_prefix(&root).expect("it is inside").display().to_string());
            }
        }
    }
    found.sort();
    found
}

fn pages() -> Vec<String> {
    files("", &[".md"])
}

fn assert_none(rule: &str, offenders: &[String]) {
    assert!(offenders.is_empty(), "{rule}:\n  {}", offenders.join("\n  "));
}

/// What stands in code: between backticks, and every word of a block of code.
fn code_words(page: &str) -> Vec<&str> {
    let (mut words, mut is_block) = (Vec::new(), false);
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            is_block = !is_block;
        } else if is_block {
            words.extend(line.split([' ', '"', '=', '$', '(']));
        } else {
            words.extend(line.split('`').skip(1).step_by(2));
        }
    }
    words
}

/// Whether it names something of this repository; what has a space or a placeholder in it is something else.
fn is_path(word: &str) -> bool {
    OURS.iter().any(|start| word.starts_with(start)) && !word.contains([' ', ':', '~', '*', '<', '$', '{', '…'])
}

/// Where a link leads, as far as it is to a file of ours.
fn links(page: &str) -> impl Iterator<Item = &str> {
    let targets = page.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://")).map(|target| target.split('#').next().unwrap_or_default())
}

/// The number of the first line and the words of each paragraph. An item of a list is one; tables, headings and code are
/// none.
fn paragraphs(page: &str) -> Vec<(usize, usize)> {
    let (mut found, mut is_block, mut is_open) = (Vec::<(usize, usize)>::new(), false, false);
    for (index, line) in page.lines().enumerate() {
        let text = line.trim();
        let is_fence = text.starts_with("```");
        is_block ^= is_fence;
        if is_fence || is_block || text.is_empty() || text.starts_with(['|', '#']) {
            is_open = false;
            continue;
        }
        let number = text.trim_start_matches(|digit: char| digit.is_ascii_digit());
        let begins_item = text.starts_with("- ") || (number != text && number.starts_with(". "));
        if !is_open || begins_item {
            found.push((index + 1, 0));
            is_open = true;
        }
        if let Some((_, words)) = found.last_mut() {
            *words += text.split_whitespace().count();
        }
    }
    found
}

/// The cells of every row of the page's tables, without the heads.
fn rows(page: &str) -> impl Iterator<Item = Vec<&str>> {
    let inside = page.lines().filter_map(|line| line.strip_prefix("| ")?.trim_end().strip_suffix('|'));
    inside.map(|line| line.split('|').map(str::trim).collect())
}

#[test]
fn docs_are_read_as_they_are_meant() {
    let page = "# A\n\none two\nthree `docs/x`\n- four\n  five\n1. six\n\n```\nseven docs/y z\n```\n| a | `docs/z` | |\n[b](c.md#d)";
    assert_eq!(paragraphs(page), [(3, 4), (5, 3), (7, 2), (13, 1)]);
    assert_eq!(
        code_words(page).into_iter().filter(|word| is_path(word)).collect::<Vec<_>>(),
        ["docs/x", "docs/y", "docs/z"]
    );
    assert_eq!(links(page).collect::<Vec<_>>(), ["c.md"]);
    assert_eq!(rows(page).collect::<Vec<_>>(), [["a", "`docs/z`", ""]]);
    assert_eq!(rows_in_names("fn row_06_07_x() {}\n    def test_row_41_y(self):\nfn narrow_12()"), [6, 7, 41]);
}

#[test]
fn docs_name_only_what_exists() {
    let (mut offenders, mut path_count) = (Vec::new(), 0);
    for page in pages() {
        let text = read(&page);
        let folder = root().join(&page).parent().expect("a file is in a folder").to_owned();
        for word in code_words(&text).into_iter().filter(|word| is_path(word)) {
            path_count += 1;
            if !root().join(word).exists() {
                offenders.push(format!("{page}: {word}"));
            }
        }
        offenders.extend(
            links(&text).filter(|link| !folder.join(link).exists()).map(|link| format!("{page}: a link to {link}")),
        );
    }
    assert_none("pages name what does not exist", &offenders);
    assert!(path_count >= 200, "the pages should show the way: they name {path_count} paths");
}

#[test]
fn docs_recipes_show_every_step_by_a_path() {
    let page = read("docs/adding.md");
    let mut offenders = Vec::new();
    for recipe in page.split("\n## ").skip(1) {
        let title = recipe.lines().next().unwrap_or_default();
        if !code_words(recipe).into_iter().any(is_path) {
            offenders.push(format!("{title}: no path"));
        }
        // Here whatever looks like a path is one.
        let words = code_words(recipe).into_iter().filter(|word| word.contains('/') && !word.contains(' '));
        offenders.extend(words.filter(|word| !root().join(word).exists()).map(|word| format!("{title}: {word}")));
    }
    assert_none("recipes of docs/adding.md", &offenders);
    for recipe in
        ["A dialect", "A model family", "An engine", "A setting", "A rule of the scheduler", "A limit", "A fault"]
    {
        assert!(page.contains(&format!("\n## {recipe}")), "docs/adding.md has no recipe for: {recipe}");
    }
}

#[test]
fn docs_are_short_enough_to_be_read() {
    let line_count = read("README.md").lines().count();
    assert!(line_count <= README_LINES_MAX, "README.md has {line_count} lines, at most {README_LINES_MAX} are read");
    let mut offenders = Vec::new();
    for page in pages() {
        let long = paragraphs(&read(&page)).into_iter().filter(|(_, words)| *words > PARAGRAPH_WORDS_MAX);
        offenders.extend(long.map(|(line, words)| format!("{page}:{line}: {words} words")));
    }
    assert_none("paragraphs over 100 words", &offenders);
}

#[test]
fn docs_pages_say_first_what_they_are_for() {
    let readme = read("README.md");
    let mut offenders = Vec::new();
    for page in files("docs", &[".md"]) {
        let text = read(&page);
        let mut lines = text.lines();
        let has_title = lines.next().is_some_and(|line| line.starts_with("# "));
        let purpose = lines.find(|line| !line.is_empty()).unwrap_or_default();
        if !has_title || !purpose.starts_with(char::is_uppercase) || !purpose.ends_with('.') {
            offenders.push(format!("{page}: no title, or its first line does not say what it is for"));
        }
        if !links(&readme).any(|link| link == page) {
            offenders.push(format!("{page}: README.md does not lead there"));
        }
    }
    assert_none("pages nobody finds their way in", &offenders);
}

#[test]
fn docs_settings_are_those_of_the_table() {
    let table = table::markdown();
    assert!(read("docs/settings.md").contains(&table), "the table of docs/settings.md should read:\n{table}");
}

/// What follows a page's name in a comment, such as "Options" in "`docs/conformance.md`, Options": the heading that is
/// meant. A name without one means the whole page.
fn cited_headings(source: &str) -> Vec<(String, Option<String>)> {
    let text: Vec<&str> =
        source.lines().map(|line| line.trim_start().trim_start_matches(['/', '!', '#']).trim()).collect();
    let text = text.join(" ");
    let cited = text.split("`docs/").skip(1).filter_map(|rest| rest.split_once('`'));
    let cited = cited.filter(|(page, _)| page.ends_with(".md"));
    cited
        .map(|(page, rest)| {
            let heading = rest.strip_prefix(", ").and_then(|rest| rest.split([',', '.', ';', ':', ')', '`']).next());
            let heading = heading.filter(|heading| heading.starts_with(char::is_uppercase));
            (format!("docs/{page}"), heading.map(str::to_owned))
        })
        .collect()
}

#[test]
fn docs_that_sources_cite_are_here() {
    let text = "//! As in (`docs/a.md`, Two\n//! words), and `docs/b.md`, which says";
    let expect = [("docs/a.md".to_owned(), Some("Two words".to_owned())), ("docs/b.md".to_owned(), None)];
    assert_eq!(cited_headings(text), expect);
    let (mut offenders, mut cited_count) = (Vec::new(), 0);
    for path in files("", &[".rs", ".toml"]).into_iter().filter(|path| !path.ends_with("it/docs.rs")) {
        for (page, heading) in cited_headings(&read(&path)) {
            cited_count += 1;
            let is_there = root().join(&page).exists()
                && heading.as_ref().is_none_or(|heading| read(&page).contains(&format!("\n## {heading}\n")));
            if !is_there {
                offenders.push(format!("{path}: {page} {}", heading.unwrap_or_default()));
            }
        }
    }
    assert_none("sources cite pages or headings that are not here", &offenders);
    assert!(cited_count > 0, "the sources cite some page");
}

/// The numbers behind `row` in the names of tests: `fn row_06_07_…` and `def test_row_06_07_…`.
fn rows_in_names(text: &str) -> Vec<u32> {
    let mut rows = Vec::new();
    for line in text.lines().map(str::trim_start) {
        let names = ["fn row_", "async fn row_", "def test_row_"];
        let Some(rest) = names.iter().find_map(|start| line.strip_prefix(start)) else { continue };
        rows.extend(rest.split('_').map_while(|word| if word.len() == 2 { word.parse::<u32>().ok() } else { None }));
    }
    rows
}

#[test]
fn docs_every_row_of_the_faults_is_proven_or_told() {
    let mut proven = BTreeSet::new();
    for path in files("", &[".rs", ".py"]) {
        proven.extend(rows_in_names(&read(&path)).into_iter().map(|row| (row, path.clone())));
    }
    let has_test = |row: u32| proven.iter().any(|(known, _)| *known == row);
    let (page, mut seen, mut offenders) = (read("docs/faults.md"), Vec::new(), Vec::new());
    for cells in rows(&page) {
        let Some(row) = cells.first().and_then(|cell| cell.parse::<u32>().ok()) else { continue };
        let [_, fault, must, tests, told] = cells[..] else {
            offenders.push(format!("row {row} has {} cells", cells.len()));
            continue;
        };
        seen.push(row);
        if fault.is_empty() || must.is_empty() {
            offenders.push(format!("row {row} does not say what goes wrong or what must happen"));
        }
        if !has_test(row) && told.is_empty() {
            offenders.push(format!("row {row} has no test and is not told of"));
        }
        // A file may only be named alone where it has a test of that number, or the last cell says what it proves.
        let named = code_words(tests);
        let strange = named.iter().filter(|path| told.is_empty() && !proven.contains(&(row, (**path).to_owned())));
        offenders.extend(strange.map(|path| format!("row {row}: no test of that number in {path}")));
        if has_test(row) && named.is_empty() {
            offenders.push(format!("row {row} has tests, and the page does not say where"));
        }
    }
    if seen != ROWS.collect::<Vec<_>>() {
        offenders.push(format!("the rows are {seen:?}"));
    }
    let unknown = proven.iter().filter(|(row, _)| !ROWS.contains(row));
    offenders.extend(unknown.map(|(row, path)| format!("{path}: there is no row {row}")));
    assert_none("rows of docs/faults.md", &offenders);
}

/// One of each, and a signal of either kind. Whoever adds a cause is led here by the compiler.
fn causes() -> Vec<Cause> {
    let failure = Failure::new(FailureKind::LoadFailed, "why");
    let known = |cause: &Cause| match cause {
        Cause::Asked
        | Cause::Exited { .. }
        | Cause::Signalled { .. }
        | Cause::NoHello
        | Cause::HelloRefused(_)
        | Cause::LoadStalled
        | Cause::LoadFailed(_)
        | Cause::Silent
        | Cause::Protocol(_)
        | Cause::Unhealthy
        | Cause::LinkLost
        | Cause::SpawnFailed(_)
        | Cause::OverBudget
        | Cause::OverOwnLimit { .. }
        | Cause::Leaked
        | Cause::OutOfMemory
        | Cause::TooLarge { .. } => true,
    };
    let all = vec![
        Cause::Asked,
        Cause::Exited { code: 1 },
        Cause::Signalled { signal: 11 },
        Cause::Signalled { signal: 9 },
        Cause::NoHello,
        Cause::HelloRefused(String::new()),
        Cause::LoadStalled,
        Cause::LoadFailed(failure),
        Cause::Silent,
        Cause::Protocol(String::new()),
        Cause::Unhealthy,
        Cause::LinkLost,
        Cause::SpawnFailed(String::new()),
        Cause::OverBudget,
        Cause::OverOwnLimit { took: 2, limit: 1 },
        Cause::Leaked,
        Cause::OutOfMemory,
        Cause::TooLarge { need: 2, limit: 1, own: u64::MAX },
    ];
    assert!(all.iter().all(known));
    all
}

#[test]
fn docs_deaths_tells_of_every_cause() {
    let page = read("docs/deaths.md");
    let section = page.split("\n## ").find(|section| section.starts_with("The 17 causes")).unwrap_or_default();
    let told: Vec<Vec<&str>> = rows(section).filter(|cells| cells.len() == 7 && cells[0] != "cause").collect();
    let causes = causes();
    let is_told = |cause: &&Cause| told.iter().any(|cells| code_words(cells[1]).contains(&cause.class()));
    let silent = causes.iter().filter(|cause| !is_told(cause));
    assert_none(
        "causes that docs/deaths.md is silent about",
        &silent.map(|cause| cause.class().to_owned()).collect::<Vec<_>>(),
    );
    assert_eq!(told.len(), causes.len(), "one row of docs/deaths.md for each cause, and two for signals");
}

#[test]
fn docs_memory_tells_the_marks_as_they_are() {
    let page = read("docs/memory.md");
    for [enter, leave] in limits::MEMORY_MARKS_PERMILLE {
        let (enter, leave) = (format!("{}% of the limit", enter / 10), format!("{}%", leave / 10));
        let is_told = rows(&page).any(|cells| cells[0].starts_with(&enter) && cells.get(1) == Some(&leave.as_str()));
        assert!(is_told, "docs/memory.md has no row for {enter}, left below {leave}");
    }
}
