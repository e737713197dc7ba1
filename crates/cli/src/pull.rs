//! `chorale pull`: brings a model from the hub into its cache. The directory
//! is the result, so it goes to standard output.

use crate::args::PullArgs;
use crate::exit::UsageError;
use crate::output::Output;
use crate::progress::Fetch;
use crate::setup::Setup;
use anyhow::Context;
use chorale_hub::{HubId, ModelName};

/// Downloads what is missing and prints where the model is.
pub(crate) fn run(args: &PullArgs, setup: &Setup) -> anyhow::Result<()> {
    let id: HubId = args.id.parse()?;
    let options = setup.hub_options()?;
    if options.offline {
        let why = format!("cannot pull {id} offline: leave out --offline and HF_HUB_OFFLINE");
        return Err(UsageError(why).into());
    }
    let bar = setup.progress.fetch(Fetch::Download);
    let directory = chorale_hub::pull(&ModelName::Hub(id.clone()), &options, &|event| bar.on(event))
        .with_context(|| format!("cannot pull {id}"))?;
    Ok(Output::print(&format!("{}\n", directory.display()))?)
}
