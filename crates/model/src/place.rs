//! Another placement of the experts while steps run: its experts are loaded
//! beside those in use, a layer at a time, and one step goes over to them.

use crate::checkpoint::Checkpoint;
use crate::forward::GptOss;
use crate::weights::{HeldExperts, LoadError};
use chorale_device::Device;
use chorale_link::{Member, PlaceError};
use chorale_plan::Placement;

/// A placement whose experts are being loaded.
pub struct Preparation<D: Device> {
    placement: Placement,
    layers: Vec<HeldExperts<D>>,
}

impl<D: Device> Preparation<D> {
    /// The placement's version.
    pub fn version(&self) -> u32 {
        self.placement.version
    }

    /// True once steps may use it.
    pub fn is_done(&self) -> bool {
        self.layers.len() == self.placement.layers.len()
    }
}

impl<D: Device, L: Member<D>> GptOss<D, L> {
    /// Begins with a placement, if it is one for this world.
    pub fn begin_preparation(&self, placement: Placement) -> Result<Preparation<D>, PlaceError<D::Error>> {
        self.link.check(&placement)?;
        Ok(Preparation { placement, layers: Vec::new() })
    }

    /// Loads the experts of the next layer, those that are not held already.
    pub fn prepare_layer(
        &mut self,
        checkpoint: &Checkpoint,
        preparation: &mut Preparation<D>,
    ) -> Result<(), LoadError<D::Error>> {
        let layer = preparation.layers.len();
        let numbers = preparation.placement.experts_of(self.link.place().rank, layer);
        let experts = self.weights.other_experts(&mut self.device, checkpoint, layer, &numbers)?;
        preparation.layers.push(experts);
        Ok(())
    }

    /// Uses a placement from the next step on; experts that it does not place
    /// here are dropped.
    pub fn go_over(&mut self, preparation: Preparation<D>) -> Result<(), PlaceError<D::Error>> {
        assert!(preparation.is_done(), "all layers are loaded");
        let Preparation { placement, layers } = preparation;
        let rank = self.link.place().rank;
        let experts = (0..placement.layers.len()).map(|layer| placement.experts_of(rank, layer)).collect();
        self.link.go_over(&mut self.device, placement)?;
        self.weights.replace_experts(layers);
        self.set_experts(experts);
        Ok(())
    }
}
