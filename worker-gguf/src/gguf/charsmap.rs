//! The table by which a unigram tokenizer replaces letters (`tokenizer.ggml.precompiled_charsmap`).
//!
//! Four bytes of length, a compact trie of that length, and the replacements, each ended by a zero. llama.cpp follows the
//! trie while it reads a text, and throws through code that can't catch it where an index leads outside. So every node that
//! a text can lead to is looked at here, once. The packing of a node is described in `llama-vocab.cpp`.

use super::limits::REPLACEMENT_BYTES_MAX;

/// Checks a table.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let Some((length, rest)) = bytes.split_first_chunk() else { return Err("too short for its length".into()) };
    let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length >= rest.len() {
        return Err(format!("a trie of {length} bytes, but {} follow", rest.len()));
    }
    let (trie, replacements) = rest.split_at(length);
    let nodes: Vec<u32> = trie.as_chunks().0.iter().map(|node| u32::from_le_bytes(*node)).collect();
    let Some(root) = nodes.first() else { return Ok(()) };
    let mut seen = vec![false; nodes.len()];
    let mut open = vec![base(*root)];
    while let Some(place) = open.pop() {
        for letter in 1..=u32::from(u8::MAX) {
            let index = place ^ letter;
            let node = at(&nodes, index)?;
            if node & (1 << 31 | 0xff) != letter || std::mem::replace(&mut seen[index as usize], true) {
                continue;
            }
            let next = index ^ base(node);
            if node >> 8 & 1 == 1 {
                replacement(replacements, at(&nodes, next)? & !(1 << 31))?;
            }
            open.push(next);
        }
    }
    Ok(())
}

fn base(node: u32) -> u32 {
    (node >> 10) << ((node & 1 << 9) >> 6)
}

fn at(nodes: &[u32], index: u32) -> Result<u32, String> {
    nodes.get(index as usize).copied().ok_or_else(|| format!("node {index} of {}", nodes.len()))
}

fn replacement(replacements: &[u8], offset: u32) -> Result<(), String> {
    let text = replacements.get(offset as usize..).unwrap_or_default();
    match text.iter().take(REPLACEMENT_BYTES_MAX + 1).position(|byte| *byte == 0) {
        Some(_) => Ok(()),
        None => Err(format!("the replacement at byte {offset} has no end within {REPLACEMENT_BYTES_MAX} bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trie that replaces `a` by what is at `offset`.
    fn table(offset: u32, replacements: &[u8]) -> Vec<u8> {
        let mut nodes = vec![1 << 31; 512];
        nodes[0] = 0;
        // Child `a` of the root, a leaf whose value is at 256.
        nodes[usize::from(b'a')] = u32::from(b'a') | 1 << 8 | (256 ^ u32::from(b'a')) << 10;
        nodes[256] = 1 << 31 | offset;
        let trie: Vec<u8> = nodes.into_iter().flat_map(u32::to_le_bytes).collect();
        [&u32::try_from(trie.len()).unwrap().to_le_bytes()[..], &trie, replacements].concat()
    }

    #[test]
    fn a_sound_table_passes_and_indexes_that_lead_outside_are_refused() {
        assert_eq!(check(&table(0, b"x\0")), Ok(()));
        assert!(check(&table(2, b"x\0")).unwrap_err().contains("byte 2"));
        assert!(check(&table(0, b"xy")).unwrap_err().contains("no end"));
        assert!(check(&table(0, &[b'x'; REPLACEMENT_BYTES_MAX])).is_err());
        assert!(check(b"\x04\0").unwrap_err().contains("too short"));
        assert!(check(&[255; 64]).unwrap_err().contains("but 60 follow"));
        let mut outside = table(0, b"x\0");
        outside[4..8].copy_from_slice(&(1_u32 << 20 << 10).to_le_bytes());
        assert!(check(&outside).unwrap_err().contains("of 512"));
    }

    #[test]
    fn a_trie_that_turns_in_a_circle_ends() {
        let mut circle = table(0, b"x\0");
        let at = 4 + 4 * usize::from(b'a');
        // The child's children are those of the root.
        circle[at..at + 4].copy_from_slice(&(u32::from(b'a') | u32::from(b'a') << 10).to_le_bytes());
        assert_eq!(check(&circle), Ok(()));
    }
}
