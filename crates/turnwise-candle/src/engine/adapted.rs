//! Products with packed weights and the adapters beside them.

use turnwise_kernels::panels::{Epilogue, Panels, gate_rows};
use turnwise_kernels::team::Team;

use super::compute::{MIN_TOKENS_PER_THREAD, product, scale_rows};
use crate::weights::PackedAdapter;

/// A packed matrix, and its adapter if it has one that is not merged.
#[derive(Clone, Copy, Debug)]
pub(super) struct AdaptedPanels<'a> {
    pub(super) panels: &'a Panels,
    pub(super) adapter: Option<&'a PackedAdapter>,
}

/// Memory for adapters, reused across steps.
#[derive(Debug, Default)]
pub(super) struct AdapterMemory {
    /// Results of the first matrices. `[N, ranks]`, padded to whole vectors
    inner: Vec<f32>,
    /// Products before a gated epilogue.
    wide: Vec<f32>,
}

impl AdaptedPanels<'_> {
    /// Multiplies rows that start `stride` apart.
    pub(super) fn multiply(
        &self,
        team: &mut Team,
        rows: &[f32],
        stride: usize,
        target: &mut Vec<f32>,
        then: Epilogue,
        memory: &mut AdapterMemory,
    ) {
        let Some(adapter) = self.adapter else {
            return product(team, self.panels, rows, stride, target, then);
        };
        let AdapterMemory { inner, wide } = memory;
        product(team, &adapter.down, rows, stride, inner, Epilogue::Replace);
        scale_rows(inner, adapter.scale);
        let ranks = adapter.down.columns(Epilogue::Replace);
        if matches!(then, Epilogue::Replace | Epilogue::Add) {
            product(team, self.panels, rows, stride, target, then);
            return product(team, &adapter.up, inner, ranks, target, Epilogue::Add);
        }
        product(team, self.panels, rows, stride, wide, Epilogue::Replace);
        product(team, &adapter.up, inner, ranks, wide, Epilogue::Add);
        target.resize(wide.len() / 2, 0.0);
        let length = MIN_TOKENS_PER_THREAD * self.panels.columns(then);
        team.chunks(target, length, |_, index, target| {
            gate_rows(target, &wide[2 * index * length..][..2 * target.len()], then);
        });
    }
}
