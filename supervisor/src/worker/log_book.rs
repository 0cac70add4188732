//! What the workers of each model printed last, for `ollmlx logs`: readable at any moment, also after a death.
//!
//! Bounded: [`LOG_LINES_MAX`] lines of each of [`LOG_MODELS_MAX`] models; who floods is rationed before it comes here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::limits::{LOG_LINES_MAX, LOG_MODELS_MAX};
use ollmlx_proto::{ModelId, WorkerId};
use tokio::sync::watch;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Counts all lines of the model.
    pub number: u64,
    /// When it came, in nanoseconds since the start.
    pub at_ns: u64,
    /// Which process of the model printed it.
    pub incarnation: u32,
    /// Without its end.
    pub text: String,
}

/// The lines of one model, oldest first.
pub type Lines = Arc<VecDeque<LogLine>>;
/// All of them.
pub type LogBook = BTreeMap<ModelId, Lines>;

/// Writes lines down.
pub fn write(book: &watch::Sender<LogBook>, worker: &WorkerId, lines: &[String], at_ns: u64) {
    if lines.is_empty() {
        return;
    }
    book.send_modify(|book| {
        if !book.contains_key(&worker.model) && book.len() >= LOG_MODELS_MAX {
            let oldest = book.iter().min_by_key(|(_, lines)| lines.back().map(|line| line.at_ns));
            if let Some(oldest) = oldest.map(|(model, _)| model.clone()) {
                book.remove(&oldest);
            }
        }
        let kept = Arc::make_mut(book.entry(worker.model.clone()).or_default());
        for text in lines {
            let number = kept.back().map_or(1, |last| last.number + 1);
            let line = LogLine { number, at_ns, incarnation: worker.incarnation.0, text: text.clone() };
            if kept.len() >= LOG_LINES_MAX {
                kept.pop_front();
            }
            kept.push_back(line);
        }
    });
}

#[cfg(test)]
mod tests {
    use ollmlx_proto::Incarnation;

    use super::*;

    fn worker(model: &str) -> WorkerId {
        WorkerId { model: ModelId(model.to_owned()), incarnation: Incarnation(1) }
    }

    #[test]
    fn lines_and_models_are_bounded_and_the_oldest_go_first() {
        let (book, _) = watch::channel(LogBook::new());
        let many: Vec<String> = (0..=LOG_LINES_MAX).map(|number| number.to_string()).collect();
        write(&book, &worker("first"), &many, 0);
        let lines = book.borrow()[&worker("first").model].clone();
        assert_eq!((lines.len(), lines[0].number, lines[0].text.as_str()), (LOG_LINES_MAX, 2, "1"));
        for model in 1..=LOG_MODELS_MAX {
            write(&book, &worker(&format!("m{model}")), &["x".to_owned()], model as u64);
        }
        assert_eq!(book.borrow().len(), LOG_MODELS_MAX);
        assert!(!book.borrow().contains_key(&worker("first").model));
    }
}
