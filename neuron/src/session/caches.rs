//! The key and value caches of a model's slots, and bindings to some of them.

use ort::{
    session::{IoBinding, Session},
    value::{DynTensor, TensorElementType},
};

use super::{
    budget::Room,
    memory::{Memory, zeroed},
    view,
};
use crate::{config::ModelConfig, model::GraphSpec};

/// One tensor for each layer and part, `[slots, kv_heads, context, head]`, all zero.
pub(super) fn allocate(
    session: &Session,
    config: &ModelConfig,
    graph: &GraphSpec,
    room: Room,
    memory: &Memory,
) -> ort::Result<Vec<DynTensor>> {
    let element = element(session, graph)?;
    let shape = [room.slots, graph.kv_heads, room.context, graph.head_size];
    let bytes = room.slots * room.context * bytes_token(element, graph)?;
    tracing::info!(
        model = %config.id, device = config.device.as_str(), slots = room.slots, context = room.context, bytes,
        "caches are allocated: fewer slots or a smaller context take less"
    );
    (0..2 * graph.layers)
        .map(|_| zeroed(&memory.device, element, shape))
        .collect()
}

/// What one token takes in the caches of one slot.
pub(super) fn bytes_token(element: TensorElementType, graph: &GraphSpec) -> ort::Result<usize> {
    let sides = [2, graph.layers, graph.kv_heads, graph.head_size];
    let elements = (sides.iter()).try_fold(1usize, |all, side| all.checked_mul(*side));
    let elements = elements.filter(|elements| (1..1 << 40).contains(elements));
    elements
        .and_then(|elements| element.byte_size(elements))
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| ort::Error::new("the caches that genai_config.json describes have no size"))
}

/// The type of what is kept.
pub(super) fn element(session: &Session, graph: &GraphSpec) -> ort::Result<TensorElementType> {
    let first = numbered(&graph.past_key, 0);
    let input = session.inputs().iter().find(|input| input.name() == first);
    input
        .and_then(|input| input.dtype().tensor_type())
        .ok_or_else(|| ort::Error::new(format!("the graph has no tensor input {first:?}")))
}

/// A binding whose caches are `count` slots from `first` on, as input and output at once.
pub(super) fn lane(
    session: &Session,
    graph: &GraphSpec,
    caches: &[DynTensor],
    first: usize,
    count: usize,
) -> ort::Result<IoBinding> {
    let mut binding = session.create_binding()?;
    for (layer, pair) in caches.chunks_exact(2).enumerate() {
        let names = [
            (&graph.past_key, &graph.present_key),
            (&graph.past_value, &graph.present_value),
        ];
        for (cache, (past, present)) in pair.iter().zip(names) {
            let view = view::rows(cache, first, count)?;
            binding.bind_input(numbered(past, layer), &view)?;
            binding.bind_output(numbered(present, layer), view)?;
        }
    }
    Ok(binding)
}

/// Names of the caches that the graph takes.
pub(super) fn past_names(graph: &GraphSpec) -> impl Iterator<Item = String> + '_ {
    (0..graph.layers).flat_map(|layer| {
        [
            numbered(&graph.past_key, layer),
            numbered(&graph.past_value, layer),
        ]
    })
}

fn numbered(pattern: &str, layer: usize) -> String {
    pattern.replace("%d", &layer.to_string())
}
