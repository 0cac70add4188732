//! Tells a model's path from its name: a path has a slash and leads to something.

/// The absolute form of an existing path.
#[must_use]
pub fn absolute(word: &str) -> Option<String> {
    if !word.contains('/') {
        return None;
    }
    std::fs::canonicalize(word).ok()?.into_os_string().into_string().ok()
}

/// Whether the word can only be meant as a path.
#[must_use]
pub fn looks_like_path(word: &str) -> bool {
    word.starts_with('/') || word.starts_with("./") || word.starts_with("../")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_slash_that_leads_somewhere() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("m.gguf");
        std::fs::write(&file, b"GGUF").unwrap();
        let dotted = format!("{}/./m.gguf", folder.path().display());
        assert_eq!(absolute(&dotted).as_deref(), file.canonicalize().unwrap().to_str());
        assert_eq!(absolute("library/llama3"), None);
        assert_eq!(absolute("smol"), None);
        assert!(looks_like_path("./gone.gguf") && !looks_like_path("hf.co/x/y"));
    }
}
