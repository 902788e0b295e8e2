//! Memory of the device that a model runs on, and of the host beside it.

use ort::{
    memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType},
    session::Session,
    value::{DynTensor, TensorElementType},
};

use super::view;
use crate::config::{Device, ModelConfig};

/// Where the tensors of one model lie.
pub(super) struct Memory {
    /// What the device computes on.
    pub(super) device: Allocator,
    /// Plain memory. Copies from the device end here: with memory that it writes to by itself as the
    /// target, ONNX Runtime 1.31 takes source and target for one.
    pub(super) host: Allocator,
    host_info: MemoryInfo<'static>,
}

impl Memory {
    pub(super) fn of(session: &Session, config: &ModelConfig) -> ort::Result<Self> {
        let device = match config.device {
            Device::Cpu => Allocator::default(),
            Device::Cuda => {
                let info = MemoryInfo::new(
                    AllocationDevice::CUDA,
                    config.cuda.device_id,
                    AllocatorType::Device,
                    MemoryType::Default,
                )?;
                Allocator::new(session, info)?
            }
        };
        Ok(Self {
            device,
            host: Allocator::default(),
            host_info: host_info(config)?,
        })
    }

    /// For outputs of a run that are to end on the host: memory that a GPU writes to by itself.
    pub(super) fn host_info(&self) -> &MemoryInfo<'static> {
        &self.host_info
    }
}

fn host_info(config: &ModelConfig) -> ort::Result<MemoryInfo<'static>> {
    let (device, id) = match config.device {
        Device::Cpu => (AllocationDevice::CPU, 0),
        Device::Cuda => (AllocationDevice::CUDA_PINNED, config.cuda.device_id),
    };
    MemoryInfo::new(device, id, AllocatorType::Device, MemoryType::CPUOutput)
}

/// A tensor whose rows are all zero. ONNX Runtime's binding zeroes only what the CPU reaches; in
/// memory of a GPU lies whatever was there before, and not-a-numbers in it would spread.
pub(super) fn zeroed(
    allocator: &Allocator,
    element: TensorElementType,
    shape: [usize; 4],
) -> ort::Result<DynTensor> {
    let mut tensor = DynTensor::new(allocator, element, shape)?;
    if !tensor.memory_info().is_cpu_accessible() {
        zero(&mut tensor)?;
    }
    Ok(tensor)
}

/// Row by row, so that the host needs no more than one row's memory for it.
fn zero(tensor: &mut DynTensor) -> ort::Result<()> {
    let mut shape = tensor.shape().clone();
    let rows = usize::try_from(shape[0]).unwrap_or(0);
    shape[0] = 1;
    let zeros = DynTensor::new(&Allocator::default(), *tensor.data_type(), shape)?;
    for row in 0..rows {
        zeros.copy_into(&mut view::rows(tensor, row, 1)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::library::{self, tests::fetched};

    #[test]
    fn every_row_of_what_is_zeroed_is_zero() {
        let _environment = library::runtime(&fetched()).unwrap();
        let element = TensorElementType::Float16;
        let mut tensor = DynTensor::new(&Allocator::default(), element, [3usize, 2, 5, 4]).unwrap();
        let (_, values) = tensor.try_extract_tensor_mut::<half::f16>().unwrap();
        values.fill(half::f16::NAN);
        zero(&mut tensor).unwrap();
        let (_, values) = tensor.try_extract_tensor::<half::f16>().unwrap();
        assert_eq!(values.len(), 120);
        assert!(values.iter().all(|value| *value == half::f16::ZERO));
    }
}
