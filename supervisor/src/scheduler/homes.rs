//! Where each living request is, and how many bytes all of them take: each is kept until its end, so that it can go on
//! after a death, and the sum is bounded by [`limits::REQUEST_BYTES_KEPT_MAX`].

use std::collections::BTreeMap;

use ollmlx_proto::{ModelId, RequestId, limits};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Homes {
    of: BTreeMap<RequestId, (ModelId, usize)>,
    bytes: usize,
}

impl Homes {
    pub(super) fn has(&self, request: RequestId) -> bool {
        self.of.contains_key(&request)
    }

    pub(super) fn get(&self, request: RequestId) -> Option<&ModelId> {
        self.of.get(&request).map(|(model, _)| model)
    }

    pub(super) fn len(&self) -> usize {
        self.of.len()
    }

    /// Whether one of so many bytes may be kept as well.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.bytes.saturating_add(bytes) <= limits::REQUEST_BYTES_KEPT_MAX
    }

    pub(super) fn insert(&mut self, request: RequestId, model: ModelId, bytes: usize) {
        self.of.insert(request, (model, bytes));
        self.bytes += bytes;
    }

    pub(super) fn remove(&mut self, request: RequestId) {
        if let Some((_, bytes)) = self.of.remove(&request) {
            self.bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_byte_is_kept_and_one_more_is_not() {
        let mut homes = Homes::default();
        let model = ModelId("m".to_owned());
        homes.insert(RequestId(1), model.clone(), limits::REQUEST_BYTES_KEPT_MAX - 1);
        assert!(homes.has_room(1) && !homes.has_room(2));
        homes.remove(RequestId(1));
        homes.remove(RequestId(1));
        assert!(homes.has_room(limits::REQUEST_BYTES_KEPT_MAX));
        homes.insert(RequestId(2), model, 5);
        assert_eq!((homes.len(), homes.has(RequestId(2)), homes.get(RequestId(1))), (1, true, None));
    }
}
