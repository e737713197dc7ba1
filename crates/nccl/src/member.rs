//! The link as those hold it who run the rank.

use crate::link::{NcclLink, claims};
use crate::shares::Shares;
use chorale_cuda::{Cuda, GpuError};
use chorale_link::{Health, Loads, Member, Place, PlaceError};
use chorale_plan::{OneShot, Placement, StepPlan};
use std::sync::Arc;
use std::time::Duration;

impl Member<Cuda> for NcclLink {
    fn place(&self) -> &Place {
        &self.place
    }

    fn placement(&self) -> &Placement {
        &self.placement
    }

    fn check(&self, placement: &Placement) -> Result<(), PlaceError<GpuError>> {
        self.place.check(placement).map_err(|reason| PlaceError::Unfit { reason })
    }

    fn check_plan(&self, plan: &StepPlan) -> Result<(), String> {
        let Place { shape, rank, max_rows, .. } = self.place;
        let rows = &plan.home_rows;
        if rows.len() != shape.data_parallel_size as usize {
            return Err(format!("the plan says the rows of {} homes", rows.len()));
        }
        if let Some(&rows) = rows.iter().find(|&&rows| rows as usize > max_rows) {
            return Err(format!("a home has {rows} rows, there is room for {max_rows}"));
        }
        if plan.in_halves && self.halves.len() < 2 {
            return Err("the step comes in halves, this rank has no room for two".to_owned());
        }
        let own: usize = plan.slices.iter().map(|slice| slice.tokens.len()).sum();
        let [shares, _] = Shares::halves(shape, rank, rows, false);
        if own != shares.own_rows {
            return Err(format!("this home has {own} rows, the plan says {}", shares.own_rows));
        }
        Ok(())
    }

    fn go_over(&mut self, device: &mut Cuda, placement: Placement) -> Result<(), PlaceError<GpuError>> {
        (self.groups, self.tables) = claims(device, &self.place, &placement)?;
        self.placement = placement;
        Ok(())
    }

    fn loads(&self) -> &Arc<Loads> {
        self.counted.loads()
    }

    fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    fn one_shot(&self) -> OneShot {
        OneShot { world: self.circles.has_world(), group: self.circles.has_group() }
    }

    fn health(&self) -> Arc<dyn Health> {
        self.circles.health(Arc::clone(&self.comms.world.members().is_broken))
    }
}
