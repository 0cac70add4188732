//! Pictures and sounds named in a prompt: loaded, and taken out of the text.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::error::CliError;
use crate::os::stderr::tell;

/// Largest file that is sent.
const FILE_BYTES_MAX: u64 = 100_000_000;
const PICTURES: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
const SOUNDS: [&str; 1] = ["wav"];

/// The prompt without its paths, and the files in base64. Says on standard error what it took.
///
/// # Errors
/// A file that can't be read or is too large.
pub(super) fn extract(prompt: &str) -> Result<(String, Vec<String>), CliError> {
    let mut text = prompt.to_owned();
    let mut files = Vec::new();
    for word in prompt.split_whitespace() {
        let path = word.trim_matches(['"', '\'']);
        let extension =
            Path::new(path).extension().map_or_else(String::new, |found| found.to_string_lossy().to_lowercase());
        let kind = match extension.as_str() {
            word if PICTURES.contains(&word) => "image",
            word if SOUNDS.contains(&word) => "audio",
            _ => continue,
        };
        let Ok(facts) = std::fs::metadata(path) else { continue };
        let error = |source| CliError::File { path: path.to_owned(), source };
        if facts.len() > FILE_BYTES_MAX {
            return Err(error(std::io::Error::other("larger than 100 MB")));
        }
        files.push(STANDARD.encode(std::fs::read(path).map_err(error)?));
        tell(format_args!("Added {kind} '{path}'"));
        text = text.replacen(word, "", 1);
    }
    Ok((text.trim().to_owned(), files))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_leave_the_text_and_their_files_come_along() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cat.PNG");
        std::fs::write(&path, b"abc").unwrap();
        let (text, files) = extract(&format!("what is on {} and gone.png", path.display())).unwrap();
        assert_eq!(text, "what is on  and gone.png");
        assert_eq!(files, ["YWJj"]);
    }
}
