//! `cuda = { ... }` of a neuron's model: how its GPU is used.

use seatbelt_neuron::{
    Arena, CudaOptions, Device,
    config::{CUDA_CPU_NODES_MAX, CUDA_DEVICE_ID, CUDA_MEMORY_BYTES_BOUNDS},
};

use super::reader::Section;

pub(super) fn read_cuda(section: &mut Section, device: Device) -> CudaOptions {
    let given = section.has("cuda");
    let mut part = section.section("cuda");
    if given && device != Device::Cuda {
        part.mistake("", "is for device = \"cuda\" alone");
    }
    let plain = CudaOptions::default();
    let arenas = [("exact", Arena::Exact), ("doubling", Arena::Doubling)];
    let id = i32::try_from(part.setting("device_id", CUDA_DEVICE_ID));
    let (least, most) = CUDA_MEMORY_BYTES_BOUNDS;
    let bytes = part.number("memory_bytes_max", least, most);
    let options = CudaOptions {
        device_id: id.unwrap_or(plain.device_id),
        memory_bytes_max: bytes.and_then(|bytes| usize::try_from(bytes).ok()),
        arena: part.word("arena", &arenas).unwrap_or(plain.arena),
        graphs: part.flag("graphs").unwrap_or(plain.graphs),
        cpu_nodes: part.texts("cpu_nodes", CUDA_CPU_NODES_MAX),
        check_on_cpu: part.flag("check_on_cpu").unwrap_or(plain.check_on_cpu),
    };
    part.finish();
    options
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path};

    use super::*;
    use crate::config::{Config, ConfigError};

    fn read(model: &str) -> Result<CudaOptions, ConfigError> {
        let text =
            format!("[nats]\n[neuron]\nmodels = [{{ id = \"m\", path = \"m\", {model} }}]\n");
        let config = Config::from_text(&text, &BTreeMap::new(), Path::new("/"))?;
        Ok(config.neuron.unwrap().models[0].cuda.clone())
    }

    #[test]
    fn every_option_has_a_default_and_can_be_told() {
        assert_eq!(read("device = \"cuda\"").unwrap(), CudaOptions::default());
        let told = "device = \"cuda\", cuda = { device_id = 1, memory_bytes_max = 8000000000, arena = \"doubling\", \
                    graphs = true, cpu_nodes = [\"Loop\"], check_on_cpu = false }";
        let expected = CudaOptions {
            device_id: 1,
            memory_bytes_max: Some(8_000_000_000),
            arena: Arena::Doubling,
            graphs: true,
            cpu_nodes: vec!["Loop".to_owned()],
            check_on_cpu: false,
        };
        assert_eq!(read(told).unwrap(), expected);
    }

    #[test]
    fn options_of_cuda_on_the_cpu_and_unknown_ones_are_mistakes() {
        for (model, expected) in [
            (
                "device = \"cpu\", cuda = { graphs = true }",
                "device = \"cuda\" alone",
            ),
            ("device = \"cuda\", cuda = { graph = true }", "cuda.graph"),
            (
                "device = \"cuda\", cuda = { device_id = 64 }",
                "use 0 to 63",
            ),
        ] {
            let error = read(model).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected} is not in {error}");
        }
    }
}
