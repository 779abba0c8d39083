//! A cache that is bounded in bytes.

use std::hash::Hash;

use quick_cache::{
    DefaultHashBuilder, OptionsBuilder, Weighter,
    sync::{Cache, DefaultLifecycle},
};

/// One that holds so many bytes, as they are weighed, of what are usually so many items. In one part: parted by cores, as it would be by
/// itself, what is largest would be too large for any.
pub fn weighed_cache<K, V, W>(usual: usize, bytes: u64, weighter: W) -> Cache<K, V, W>
where
    K: Eq + Hash,
    V: Clone,
    W: Weighter<K, V> + Clone,
{
    let options = OptionsBuilder::new()
        .shards(1)
        .estimated_items_capacity(usual)
        .weight_capacity(bytes)
        .build();
    let Ok(options) = options else {
        unreachable!("what it needs to know is said")
    };
    let (hasher, lifecycle) = (DefaultHashBuilder::default(), DefaultLifecycle::default());
    Cache::with_options(options, weighter, hasher, lifecycle)
}
