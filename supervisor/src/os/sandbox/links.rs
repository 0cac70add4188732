//! Files that links in a model's folder lead to. They are granted one by one, and only where links are known to be honest.

use std::path::{Path, PathBuf};

use crate::limits::MODEL_LINKS_MAX;
use crate::os::folder::cache_of;

/// What the links of a folder lead to, where that is allowed: in a snapshot of the hub's cache to files of that cache, and
/// below `own`, which we have made, to any file. Blocking.
pub(super) fn linked(folder: &Path, own: Option<&Path>) -> Vec<PathBuf> {
    let Ok(real) = folder.canonicalize() else { return Vec::new() };
    let is_ours = own.and_then(|own| own.canonicalize().ok()).is_some_and(|own| real.starts_with(own));
    let home = if is_ours { Some(Path::new("/")) } else { cache_of(&real) };
    // Links that stay in the folder need no word: it is granted itself.
    home.map_or_else(Vec::new, |home| below(&real, home))
}

fn below(folder: &Path, home: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders, mut seen) = (Vec::new(), vec![folder.to_owned()], 0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            seen += 1;
            match entry.file_type() {
                _ if seen > MODEL_LINKS_MAX => return found,
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_symlink() => {
                    let target = entry.path().canonicalize().ok();
                    found.extend(target.filter(|path| path.starts_with(home) && path.is_file()));
                }
                _ => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_files_of_the_same_cache_and_elsewhere_only_where_we_have_made_them() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().canonicalize().unwrap().join(name);
        for made in ["models--a--b/blobs", "models--a--b/snapshots/r/deep", "views/v", "plain/snapshots/r"] {
            std::fs::create_dir_all(at(made)).unwrap();
        }
        for file in ["models--a--b/blobs/weights", "secret"] {
            std::fs::write(at(file), "w").unwrap();
        }
        let (weights, secret) = (at("models--a--b/blobs/weights"), at("secret"));
        for model in ["models--a--b/snapshots/r", "models--a--b/snapshots/r/deep", "views/v", "plain/snapshots/r"] {
            for (name, target) in [("a.safetensors", &weights), ("b.safetensors", &secret), ("c", &at("views"))] {
                std::os::unix::fs::symlink(target, at(model).join(name)).unwrap();
            }
        }
        let linked = |model: &str| {
            let mut found = linked(&at(model), Some(&at("views")));
            found.sort();
            found
        };
        assert_eq!(linked("models--a--b/snapshots/r"), [weights.clone(), weights.clone()]);
        assert_eq!(linked("views/v"), [weights, secret]);
        assert!(linked("plain/snapshots/r").is_empty() && linked("plain").is_empty() && linked("gone").is_empty());
    }
}
