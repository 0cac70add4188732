//! Any bytes, cut anywhere, are frames or a typed error; and what is decoded is encoded to something that decodes again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ollmlx_proto::frame::{Decoder, Message, encode};
use ollmlx_proto::{FromWorker, ToWorker};

fn read<M: Message + PartialEq + std::fmt::Debug>(bytes: &[u8], cut: usize) {
    let mut decoder = Decoder::new();
    for piece in bytes.chunks(cut) {
        decoder.push(piece);
        loop {
            match decoder.next_message::<M>() {
                Ok(None) => break,
                Err(_) => return,
                Ok(Some(message)) => {
                    let mut again = Vec::new();
                    if encode(&message, &mut again).is_ok() {
                        let mut decoder = Decoder::new();
                        decoder.push(&again);
                        assert!(decoder.next_message::<M>().expect("our own frame").is_some());
                    }
                }
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&cut, bytes)) = bytes.split_first() else { return };
    read::<FromWorker>(bytes, usize::from(cut).max(1));
    read::<ToWorker>(bytes, usize::from(cut).max(1));
});
