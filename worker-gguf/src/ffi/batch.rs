//! A batch of tokens in the form that llama.cpp reads.

use ollmlx_proto::TokenId;

/// A token and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which token.
    pub token: TokenId,
    /// In its sequence.
    pub position: u32,
    /// Which sequence.
    pub sequence: usize,
    /// Whether what comes out of it is wanted.
    pub output: bool,
}

/// Tokens that are computed together.
#[derive(Debug, Default)]
pub struct Batch {
    tokens: Vec<i32>,
    positions: Vec<i32>,
    /// Each token belongs to one sequence.
    sequence_counts: Vec<i32>,
    sequences: Vec<i32>,
    /// Where in `sequences` those of each token begin.
    sequence_starts: Vec<*mut i32>,
    outputs: Vec<i8>,
}

impl Batch {
    /// Forgets its tokens.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.sequence_counts.clear();
        self.sequences.clear();
        self.outputs.clear();
    }

    /// Appends a token.
    ///
    /// # Panics
    /// A number has more than 31 bits; the engine's contract keeps all of them far below.
    pub fn add(&mut self, place: Place) {
        let signed = |number: usize| i32::try_from(number).expect("ids, positions and slots have 31 bits");
        self.tokens.push(signed(place.token as usize));
        self.positions.push(signed(place.position as usize));
        self.sequence_counts.push(1);
        self.sequences.push(signed(place.sequence));
        self.outputs.push(i8::from(place.output));
    }

    /// How many tokens it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// As llama.cpp wants it: valid until the batch is changed or goes.
    pub(super) fn raw(&mut self) -> llama_cpp_sys_2::llama_batch {
        self.sequence_starts.clear();
        self.sequence_starts.extend(self.sequences.iter_mut().map(std::ptr::from_mut));
        llama_cpp_sys_2::llama_batch {
            n_tokens: i32::try_from(self.tokens.len()).expect("a batch has some thousand tokens"),
            token: self.tokens.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: self.positions.as_mut_ptr(),
            n_seq_id: self.sequence_counts.as_mut_ptr(),
            seq_id: self.sequence_starts.as_mut_ptr(),
            logits: self.outputs.as_mut_ptr(),
        }
    }
}
