//! A window into the forward pass, for comparing engines layer by layer. The
//! layer loop calls it at fixed stages; `()` looks at nothing and costs nothing.

use chorale_device::Device;

/// A place in the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// After the embedding.
    Embedding,
    /// After the attention of a layer, residual added.
    Attention(usize),
    /// After the experts of a layer, residual added.
    Layer(usize),
    /// After the final norm.
    FinalNorm,
}

/// Looks at the rows of a step as they pass.
pub trait Observer<D: Device>: Send {
    /// The rows `[rows, hidden]` at a stage.
    fn hidden(&mut self, device: &mut D, stage: Stage, rows: &D::Matrix) -> Result<(), D::Error>;

    /// The experts that a layer chose for each row.
    fn routing(&mut self, device: &mut D, layer: usize, routing: &D::Routing) -> Result<(), D::Error>;
}

impl<D: Device> Observer<D> for () {
    fn hidden(&mut self, _: &mut D, _: Stage, _: &D::Matrix) -> Result<(), D::Error> {
        Ok(())
    }

    fn routing(&mut self, _: &mut D, _: usize, _: &D::Routing) -> Result<(), D::Error> {
        Ok(())
    }
}
