//! A view of some neighbouring slots of a cache as a tensor of its own, without a copy.
//!
//! `ort` copies a borrowed tensor when it is bound as an input; a cache must not be copied. This is
//! the only unsafe code of the project, and all of it is here.
#![expect(
    unsafe_code,
    reason = "the safe binding of a borrowed tensor would copy the cache"
)]

use std::ptr::{self, NonNull};

use ort::{
    AsPointer,
    memory::Allocator,
    ortsys,
    value::{DynTensor, DynValue},
};

/// `count` slots of `cache` from `first` on; slots are its first dimension.
///
/// The view does not keep the cache alive: whoever holds it must drop it before the cache.
pub(super) fn slots(cache: &DynTensor, first: usize, count: usize) -> ort::Result<DynValue> {
    let shape = cache.shape();
    let slots_all = usize::try_from(shape[0]).unwrap_or(0);
    assert!(
        count > 0 && first + count <= slots_all,
        "a view lies within its cache"
    );
    let bytes_slot = (cache
        .data_type()
        .byte_size(shape.num_elements() / slots_all))
    .ok_or_else(|| ort::Error::new("a cache holds numbers"))?;
    let mut shape_view: Vec<i64> = shape.to_vec();
    shape_view[0] = i64::try_from(count).unwrap_or(i64::MAX);

    let mut value: *mut ort::sys::OrtValue = ptr::null_mut();
    // SAFETY: the pointer is the start of the cache's data, moved by whole slots, and `first + count`
    // was checked against their number; the length is that of `count` slots. The memory info is the
    // cache's own, so the pointer is of the device it names. ONNX Runtime copies shape and info, and
    // does not own the data: releasing the view frees none of it. `OnnxDecoder` declares its bindings
    // before its caches, so every view is gone before its data is. Views overlap, but one thread
    // owns them all and runs one at a time.
    let made = unsafe {
        let start = cache
            .data_ptr()
            .cast::<u8>()
            .add(first * bytes_slot)
            .cast_mut()
            .cast();
        let status = (ortsys![CreateTensorWithDataAsOrtValue])(
            cache.memory_info().ptr(),
            start,
            count * bytes_slot,
            shape_view.as_ptr(),
            shape_view.len(),
            (*cache.data_type()).into(),
            &raw mut value,
        );
        ort::Error::result_from_status(status)
    };
    made?;
    let value = NonNull::new(value).ok_or_else(|| ort::Error::new("ONNX Runtime gave no view"))?;
    // SAFETY: the value was just made, is owned by nobody else, and is a tensor. The allocator only
    // has to be some live one: a tensor over foreign data never uses it.
    Ok(unsafe { DynValue::from_ptr(value, Some(&Allocator::default())) })
}
