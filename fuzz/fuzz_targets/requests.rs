//! What libFuzzer calls; see `targets::requests`. What a body may cost is part of the promise: what is built of it stays within
//! its budget, by what the allocator really gives, and the time grows with its length.
//!
//! A body that libFuzzer makes up is short. So its parts between bytes 0xff, which are in no text, are a head, what is
//! repeated to a large body, and a tail; what is costly for its size is found that way.
#![no_main]

use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Of what is built, twice the body and 2 MiB are budget; a vector that grows holds half of itself twice.
const SPARE_BYTES: usize = 3 << 20;
/// Length of a repeated body.
const LARGE_BYTES: usize = 1 << 20;
/// For a sanitizer's pace on a busy machine.
const SLOWEST: Duration = Duration::from_secs(2);

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    measured(bytes);
    let mut parts = bytes.splitn(3, |byte| *byte == 0xff);
    if let (Some(head), Some(part), Some(tail)) = (parts.next(), parts.next(), parts.next())
        && !part.is_empty()
    {
        measured(&[head, &part.repeat(LARGE_BYTES / part.len()), tail].concat());
    }
});

fn measured(bytes: &[u8]) {
    let (before, began) = (HEAP.current_usage(), Instant::now());
    HEAP.reset_peak_usage();
    targets::requests(bytes);
    let (grown, took) = (HEAP.peak_usage().saturating_sub(before), began.elapsed());
    assert!(grown <= 2 * bytes.len() + SPARE_BYTES, "{} bytes made it grow by {grown}", bytes.len());
    assert!(took <= SLOWEST, "{} bytes took {took:?}", bytes.len());
}
