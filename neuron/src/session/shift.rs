//! Moves what slots hold within a cache that the host can reach.

use half::{bf16, f16};
use ort::value::{DynTensor, PrimitiveTensorElementType, TensorElementType};

use crate::engine::Shift;

/// Whether the caches can be reached, and are of numbers that can be read here.
pub(super) fn can(caches: &[DynTensor]) -> bool {
    let known = [
        TensorElementType::Float32,
        TensorElementType::Float16,
        TensorElementType::Bfloat16,
    ];
    (caches.iter())
        .all(|cache| cache.memory_info().is_cpu_accessible() && known.contains(cache.data_type()))
}

/// Moves within one cache, `[slots, kv_heads, context, head]`.
pub(super) fn within(cache: &mut DynTensor, shift: Shift) -> ort::Result<()> {
    match cache.data_type() {
        TensorElementType::Float32 => of::<f32>(cache, shift),
        TensorElementType::Float16 => of::<f16>(cache, shift),
        TensorElementType::Bfloat16 => of::<bf16>(cache, shift),
        other => Err(ort::Error::new(format!("a cache of {other} is not moved"))),
    }
}

fn of<T: Copy + PrimitiveTensorElementType>(
    cache: &mut DynTensor,
    shift: Shift,
) -> ort::Result<()> {
    let (shape, values) = cache.try_extract_tensor_mut::<T>()?;
    let side = |at: usize| usize::try_from(shape[at]).unwrap_or(0);
    let (heads, context, head) = (side(1), side(2), side(3));
    let (Shift::Copy { from, to, tokens }
    | Shift::Swap {
        slots: [from, to],
        tokens,
    }) = shift;
    assert!(
        from != to && from.max(to) < side(0) && tokens <= context,
        "what is moved lies within the caches"
    );
    let length = tokens * head;
    for at in 0..heads {
        let start = |slot: usize| (slot * heads + at) * context * head;
        match shift {
            Shift::Copy { .. } => {
                values.copy_within(start(from)..start(from) + length, start(to));
            }
            Shift::Swap { .. } => {
                let (low, high) = (start(from.min(to)), start(from.max(to)));
                let (below, above) = values.split_at_mut(high);
                below[low..low + length].swap_with_slice(&mut above[..length]);
            }
        }
    }
    Ok(())
}
