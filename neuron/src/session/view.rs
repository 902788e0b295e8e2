//! A view of some neighbouring rows of a tensor as a tensor of its own, without a copy.
//!
//! `ort` copies a borrowed tensor when it is bound as an input; a cache must not be copied.
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

/// `count` rows of `whole` from `first` on; rows are its first dimension.
///
/// The view does not keep the whole alive: whoever holds it must drop it before the whole.
pub(super) fn rows(whole: &DynTensor, first: usize, count: usize) -> ort::Result<DynTensor> {
    let mut shape: Vec<i64> = whole.shape().to_vec();
    shape[0] = i64::try_from(count).unwrap_or(i64::MAX);
    shaped(whole, first, count, &shape)
}

/// The same rows under another shape with as many elements.
pub(super) fn shaped(
    whole: &DynTensor,
    first: usize,
    count: usize,
    shape: &[i64],
) -> ort::Result<DynTensor> {
    let rows_all = usize::try_from(whole.shape()[0]).unwrap_or(0);
    assert!(
        count > 0 && first.checked_add(count).is_some_and(|end| end <= rows_all),
        "a view lies within its whole"
    );
    let elements_row = whole.shape().num_elements() / rows_all;
    let elements = shape.iter().try_fold(1usize, |product, side| {
        product.checked_mul(usize::try_from(*side).ok()?)
    });
    assert!(
        elements == Some(count * elements_row),
        "a view has the elements of its rows"
    );
    let bytes_row = (whole.data_type().byte_size(elements_row))
        .ok_or_else(|| ort::Error::new("a view is one of numbers"))?;

    let mut value: *mut ort::sys::OrtValue = ptr::null_mut();
    // SAFETY: the pointer is the start of the tensor's data, moved by whole rows, and `first + count`
    // was checked against their number; the length is that of `count` rows, and the shape has as many
    // elements. The memory info is the tensor's own, so the pointer is of the device it names. ONNX
    // Runtime copies shape and info, and does not own the data: releasing the view frees none of it.
    // `OnnxDecoder` declares its bindings before the tensors they see, so every view is gone before
    // its data is. Views overlap, but one thread owns them all and runs one at a time.
    let made = unsafe {
        let start = whole
            .data_ptr()
            .cast::<u8>()
            .add(first * bytes_row)
            .cast_mut()
            .cast();
        let status = (ortsys![CreateTensorWithDataAsOrtValue])(
            whole.memory_info().ptr(),
            start,
            count * bytes_row,
            shape.as_ptr(),
            shape.len(),
            (*whole.data_type()).into(),
            &raw mut value,
        );
        ort::Error::result_from_status(status)
    };
    made?;
    let value = NonNull::new(value).ok_or_else(|| ort::Error::new("ONNX Runtime gave no view"))?;
    // SAFETY: the value was just made, is owned by nobody else, and is a tensor. The allocator only
    // has to be some live one: a tensor over foreign data never uses it.
    let view: DynValue = unsafe { DynValue::from_ptr(value, Some(&Allocator::default())) };
    view.downcast()
}
