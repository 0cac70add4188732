//! All sources of the workspace, and what can only be said of all of them: which files are tests, where a name leads to.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use proc_macro2::TokenStream;

use crate::{File, is_under, parent, tokens, tree};

/// How often a name may be handed on by re-exports.
const REEXPORTS_MAX: usize = 8;

/// The parsed sources.
#[derive(Debug)]
pub struct Workspace {
    /// In the order of their paths.
    pub files: Vec<File>,
}

/// The workspace's root folder.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new("/")).to_owned()
}

impl Workspace {
    /// Reads every Rust file under the root, build outputs left out.
    ///
    /// # Errors
    /// The file that can't be read or parsed.
    pub fn read(root: &Path) -> Result<Self, String> {
        let mut paths = Vec::new();
        collect(root, &mut paths).map_err(|error| format!("{}: {error}", root.display()))?;
        paths.sort();
        let mut sources = Vec::new();
        for path in paths {
            let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            sources.push((path.strip_prefix(root).unwrap_or(&path).display().to_string(), text));
        }
        Self::of(&sources)
    }

    /// Parses these sources, each a path from the root and a text.
    ///
    /// # Errors
    /// The file that can't be parsed.
    pub fn of(sources: &[(impl AsRef<str>, impl AsRef<str>)]) -> Result<Self, String> {
        let parsed = sources.iter().map(|(path, text)| parse(path.as_ref(), text.as_ref()));
        let mut workspace = Self { files: parsed.collect::<Result<_, _>>()? };
        workspace.find_tests();
        Ok(workspace)
    }

    /// The files of one crate whose path begins so.
    pub fn under(&self, start: &str) -> impl Iterator<Item = &File> {
        self.files.iter().filter(move |file| file.path.starts_with(start))
    }

    fn find_tests(&mut self) {
        let declared = self.files.iter().flat_map(|file| {
            let tests = file.children.iter().filter(|child| file.in_tests(child.line));
            tests.map(|child| (file.home.clone(), child.name.clone()))
        });
        let declared: Vec<(String, String)> = declared.collect();
        for file in &mut self.files {
            let is_declared =
                declared.iter().any(|(home, module)| *home == file.home && is_under(&file.module, module));
            file.only_tests = file.only_tests || is_declared;
        }
    }

    /// Follows a path through re-exports to the file that defines what it names; `None` for other crates.
    #[must_use]
    pub fn definition(&self, file: &File, path: &str) -> Option<&File> {
        let mut modules = HashMap::new();
        for other in self.files.iter().filter(|other| other.home == file.home) {
            modules.entry(other.module.as_str()).or_insert(other);
        }
        follow(&modules, path)
    }

    /// What files name of their own crate, tests left out: who, in which line, the file that defines it.
    #[must_use]
    pub fn edges(&self) -> Vec<(&File, usize, &File)> {
        let mut homes: HashMap<&str, HashMap<&str, &File>> = HashMap::new();
        for file in &self.files {
            homes.entry(&file.home).or_default().entry(&file.module).or_insert(file);
        }
        let mut edges = Vec::new();
        for file in &self.files {
            for name in file.names.iter().filter(|name| !file.in_tests(name.line)) {
                match follow(&homes[file.home.as_str()], &name.name) {
                    Some(other) if other.path != file.path => {
                        edges.push((file, name.line, other));
                    }
                    _ => {}
                }
            }
        }
        edges
    }
}

/// `lib.rs` goes before `main.rs`, where a package has both.
fn follow<'a>(modules: &HashMap<&str, &'a File>, path: &str) -> Option<&'a File> {
    let mut path = path.to_owned();
    for _ in 0..REEXPORTS_MAX {
        let mut module = path.as_str();
        while !modules.contains_key(module) {
            if module == parent(module) {
                return None;
            }
            module = parent(module);
        }
        let file = modules[module];
        let rest = path[module.len()..].trim_start_matches("::");
        let (first, further) = rest.split_once("::").unwrap_or((rest, ""));
        let handed_on = file.imports.iter().find(|import| {
            import.alias == first && import.path.starts_with("crate::") && *import.scope.end() == usize::MAX
        });
        match handed_on {
            Some(import) if further.is_empty() => path.clone_from(&import.path),
            Some(import) => path = format!("{}::{further}", import.path),
            None => return Some(file),
        }
    }
    None
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let is_ours = !name.starts_with('.') && !matches!(name.as_str(), "target" | "node_modules" | "shared");
        if path.is_dir() && is_ours {
            collect(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

fn parse(path: &str, text: &str) -> Result<File, String> {
    let wrong = |line: usize, what: &dyn std::fmt::Display| format!("{path}:{line}: {what}");
    let stream = TokenStream::from_str(text).map_err(|error| wrong(error.span().start().line, &error))?;
    let syntax = syn::parse2(stream.clone()).map_err(|error| wrong(error.span().start().line, &error))?;
    let (home, module) = place(path);
    let only_tests = is_test_folder(path);
    let line_count = text.lines().count();
    let mut file = File { path: path.to_owned(), home, module, only_tests, line_count, ..File::default() };
    tokens::read(&mut file, stream);
    tree::read(&mut file, &syntax);
    Ok(file)
}

/// The crate's folder and the module's path: what follows `src/`, or the first two folders where there is none.
fn place(path: &str) -> (String, String) {
    let (home, inside) = match path.rsplit_once("/src/") {
        Some((package, inside)) => (format!("{package}/src"), inside),
        None => {
            let at = path.match_indices('/').take(2).last().map_or(0, |(at, _)| at);
            (path[..at].to_owned(), &path[(at + 1).min(path.len())..])
        }
    };
    let names = inside.strip_suffix(".rs").unwrap_or(inside).split('/');
    let names: Vec<&str> = names.filter(|name| !matches!(*name, "mod" | "lib" | "main")).collect();
    (home, ["crate"].into_iter().chain(names).collect::<Vec<_>>().join("::"))
}

/// Folders of tests, benchmarks and examples.
fn is_test_folder(path: &str) -> bool {
    let outside = path.split("/src/").next().unwrap_or(path);
    outside.split('/').any(|name| matches!(name, "tests" | "benches" | "examples" | "fuzz"))
}
