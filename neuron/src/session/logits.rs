//! What a run gives, as numbers of 32 bits: the rows that are wanted, and no others.

use std::ops::Range;

use half::{bf16, f16, slice::HalfFloatSliceExt};
use ort::value::{DynTensor, TensorElementType};

/// The last `wanted` values of a tensor. Of a prompt, only the row of its last token says what comes
/// next, and a graph whose output projection was pruned gives that row alone.
pub(super) fn read(tensor: &DynTensor, wanted: usize, logits: &mut Vec<f32>) -> ort::Result<()> {
    logits.clear();
    let skipped = tensor.shape().num_elements().checked_sub(wanted);
    let skipped = skipped.ok_or_else(too_few)?;
    append(tensor, skipped..skipped + wanted, logits)
}

/// These rows of a tensor, one after the other.
pub(super) fn pick(
    tensor: &DynTensor,
    rows: &[usize],
    vocab: usize,
    logits: &mut Vec<f32>,
) -> ort::Result<()> {
    logits.clear();
    rows.iter()
        .try_for_each(|row| append(tensor, row * vocab..(row + 1) * vocab, logits))
}

/// Some values of a tensor, behind those that are there.
pub(super) fn append(
    tensor: &DynTensor,
    values: Range<usize>,
    logits: &mut Vec<f32>,
) -> ort::Result<()> {
    let before = logits.len();
    match tensor.data_type() {
        TensorElementType::Float16 => {
            let from = part(tensor.try_extract_tensor::<f16>()?.1, values)?;
            logits.resize(before + from.len(), 0.0);
            from.convert_to_f32_slice(&mut logits[before..]);
        }
        TensorElementType::Bfloat16 => {
            let from = part(tensor.try_extract_tensor::<bf16>()?.1, values)?;
            logits.resize(before + from.len(), 0.0);
            from.convert_to_f32_slice(&mut logits[before..]);
        }
        _ => logits.extend_from_slice(part(tensor.try_extract_tensor::<f32>()?.1, values)?),
    }
    Ok(())
}

fn part<T>(values: &[T], wanted: Range<usize>) -> ort::Result<&[T]> {
    values.get(wanted).ok_or_else(too_few)
}

fn too_few() -> ort::Error {
    ort::Error::new("the run gave too few logits")
}

#[cfg(test)]
mod tests {
    use ort::value::Tensor;

    use super::*;
    use crate::session::library::{self, tests::fetched};

    /// Three rows of two; every type can hold their values.
    const ROWS: [f32; 6] = [9.0, 9.0, 9.0, 9.0, -1.5, 0.25];

    #[track_caller]
    fn check(tensor: &DynTensor) {
        let mut logits = vec![7.0; 9];
        read(tensor, 2, &mut logits).unwrap();
        assert_eq!(logits, [-1.5, 0.25]);
        assert!(read(tensor, 7, &mut logits).is_err());
        pick(tensor, &[2, 0], 2, &mut logits).unwrap();
        assert_eq!(logits, [-1.5, 0.25, 9.0, 9.0]);
        assert!(pick(tensor, &[3], 2, &mut logits).is_err());
    }

    #[test]
    fn the_last_row_is_read_whatever_the_type() {
        let _environment = library::runtime(&fetched()).unwrap();
        let shape = [1usize, 3, 2];
        let halves: Vec<f16> = ROWS.map(f16::from_f32).to_vec();
        let brains: Vec<bf16> = ROWS.map(bf16::from_f32).to_vec();
        check(&Tensor::from_array((shape, ROWS.to_vec())).unwrap().upcast());
        check(&Tensor::from_array((shape, halves)).unwrap().upcast());
        check(&Tensor::from_array((shape, brains)).unwrap().upcast());
    }
}
