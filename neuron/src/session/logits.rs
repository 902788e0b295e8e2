//! What a run gives, as numbers of 32 bits: the rows that are wanted, and no others.

use half::{bf16, f16, slice::HalfFloatSliceExt};
use ort::value::{DynTensor, TensorElementType};

/// The last `wanted` values of a tensor. Of a prompt, only the row of its last token says what comes
/// next, and a graph whose output projection was pruned gives that row alone.
pub(super) fn read(tensor: &DynTensor, wanted: usize, logits: &mut Vec<f32>) -> ort::Result<()> {
    match tensor.data_type() {
        TensorElementType::Float16 => {
            let values = tail(tensor.try_extract_tensor::<f16>()?.1, wanted)?;
            logits.resize(wanted, 0.0);
            values.convert_to_f32_slice(logits);
        }
        TensorElementType::Bfloat16 => {
            let values = tail(tensor.try_extract_tensor::<bf16>()?.1, wanted)?;
            logits.resize(wanted, 0.0);
            values.convert_to_f32_slice(logits);
        }
        _ => {
            let values = tail(tensor.try_extract_tensor::<f32>()?.1, wanted)?;
            logits.clear();
            logits.extend_from_slice(values);
        }
    }
    Ok(())
}

fn tail<T>(values: &[T], wanted: usize) -> ort::Result<&[T]> {
    let skipped = values.len().checked_sub(wanted);
    skipped
        .map(|skipped| &values[skipped..])
        .ok_or_else(|| ort::Error::new("the run gave too few logits"))
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
