//! Which nodes of a graph run where. A node that a device has no kernel for runs on the CPU, and the
//! data crosses the bus twice for it: that is an error unless it is listed.
#![expect(
    unsafe_code,
    reason = "the safe binding does not offer what the session tells of its nodes"
)]

use std::{
    ffi::{CStr, c_char},
    fmt, ptr,
};

use ort::{AsPointer, ortsys, session::Session};

/// A session tells of its nodes only if it was opened with this entry set to "1".
pub(super) const RECORD: &str = "session.record_ep_graph_assignment_info";
/// How ONNX Runtime calls its own kernels.
const CPU_PROVIDER: &str = "CPUExecutionProvider";
/// ONNX Runtime itself puts the few nodes that work on shapes, such as the length that attention
/// wants on the host, on the CPU. It has CUDA kernels for all of these and for every type, so none
/// of them is there for want of one.
const OF_SHAPES: [&str; 8] = [
    "Shape",
    "Gather",
    "Cast",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Concat",
    "Constant",
];
/// Nodes named in an error.
const NAMED_MAX: usize = 5;

/// A node and its operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    name: String,
    operator: String,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.operator)
    }
}

/// What is wrong with the nodes that run on the CPU; `allowed` holds names of nodes and operators.
pub(super) fn mistake(on_cpu: &[Node], allowed: &[String]) -> Option<String> {
    let listed = |node: &&Node| {
        OF_SHAPES.contains(&node.operator.as_str())
            || (allowed.iter()).any(|word| *word == node.name || *word == node.operator)
    };
    let strays: Vec<&Node> = on_cpu.iter().filter(|node| !listed(node)).collect();
    if strays.is_empty() {
        return None;
    }
    let named: Vec<String> = (strays.iter().take(NAMED_MAX).map(ToString::to_string)).collect();
    let more = match strays.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!(
        "nodes of the graph run on the CPU and not on the GPU: {}{more}; build the model for CUDA, or list their names or \
         operators in cuda.cpu_nodes of the model",
        named.join(", ")
    ))
}

/// The nodes of a session that run on the CPU.
pub(super) fn on_cpu(session: &Session) -> ort::Result<Vec<Node>> {
    let mut found = Vec::new();
    // SAFETY: all pointers come from the session, which owns what they point to for as long as it
    // lives, and it is borrowed here; each array has the length that was told with it.
    unsafe {
        let mut parts = ptr::null();
        let mut count = 0;
        let status = (ortsys![Session_GetEpGraphAssignmentInfo])(
            session.ptr(),
            &raw mut parts,
            &raw mut count,
        );
        ort::Error::result_from_status(status)?;
        for part in 0..count {
            let part = *parts.add(part);
            let provider = text(|out| (ortsys![EpAssignedSubgraph_GetEpName])(part, out))?;
            if provider != CPU_PROVIDER {
                continue;
            }
            let mut nodes = ptr::null();
            let mut count = 0;
            let status =
                (ortsys![EpAssignedSubgraph_GetNodes])(part, &raw mut nodes, &raw mut count);
            ort::Error::result_from_status(status)?;
            for node in 0..count {
                let node = *nodes.add(node);
                found.push(Node {
                    name: text(|out| (ortsys![EpAssignedNode_GetName])(node, out))?,
                    operator: text(|out| (ortsys![EpAssignedNode_GetOperatorType])(node, out))?,
                });
            }
        }
    }
    Ok(found)
}

/// A text that ONNX Runtime owns, copied.
///
/// # Safety
///
/// `ask` must fill in a pointer to a text that ends, or give an error.
unsafe fn text(
    ask: impl FnOnce(*mut *const c_char) -> ort::sys::OrtStatusPtr,
) -> ort::Result<String> {
    let mut text = ptr::null();
    // SAFETY: the caller's promise; a null pointer is caught before it is read.
    unsafe {
        ort::Error::result_from_status(ask(&raw mut text))?;
        if text.is_null() {
            return Err(ort::Error::new("ONNX Runtime gave no name"));
        }
        Ok(CStr::from_ptr(text).to_string_lossy().into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, operator: &str) -> Node {
        Node {
            name: name.to_owned(),
            operator: operator.to_owned(),
        }
    }

    #[test]
    fn nodes_of_shapes_and_listed_ones_may_run_on_the_cpu() {
        let nodes = [
            node("/mask_shape", "Shape"),
            node("/a", "Attention"),
            node("/b", "MatMulNBits"),
        ];
        let allowed = ["/a".to_owned(), "MatMulNBits".to_owned()];
        assert_eq!(mistake(&nodes, &allowed), None);
        let error = mistake(&nodes, &allowed[..1]).unwrap();
        assert!(
            error.contains("/b (MatMulNBits)") && error.contains("cuda.cpu_nodes"),
            "{error}"
        );
        assert!(!error.contains("/a"), "{error}");
    }

    #[test]
    fn an_error_names_a_few_and_counts_the_rest() {
        let nodes: Vec<Node> = (0..9).map(|n| node(&format!("/{n}"), "Loop")).collect();
        let error = mistake(&nodes, &[]).unwrap();
        assert!(
            error.contains("/4 (Loop) and 4 more") && !error.contains("/5"),
            "{error}"
        );
    }
}
