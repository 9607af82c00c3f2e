//! Starts a run from the command line: loads the configuration, starts MPI, and calls the search or the evaluation.

use super::table_lookup::TableLookup;
use crate::cli::{EvaluateArgs, SearchArgs, SearchNb201Args};
use crate::config::{EvaluateConfig, published};
use crate::error::Result;
use crate::nb201::Table;
use crate::space::SearchSpace;
use crate::world::with_world;

/// `search-imagenet` and `search-cifar`. Called by all ranks.
pub fn search(args: &SearchArgs, space: SearchSpace, published: (&str, &str)) -> Result<()> {
    let config = args.config(space, published, Vec::new())?;
    config.check_space(space)?;
    with_world(&config, args.run.share_gpu, |world| super::search::search(&config, args, None, world))
}

/// `search-nb201`; only rank 0 opens the table. Called by all ranks.
pub fn search_nb201(args: &SearchNb201Args) -> Result<()> {
    let published = if args.progressive { published::NB201_PROGRESSIVE } else { published::NB201 };
    let space = SearchSpace::NasBench201;
    let config = args.search.config(space, published, published::dataset_overrides(args.dataset))?;
    config.check_space(space)?;
    with_world(&config, args.search.run.share_gpu, |world| {
        let path = args.table.as_ref().filter(|_| world.rank() == 0);
        let table = path.map(|path| Table::open(path)).transpose()?;
        let benchmark = table.map(|table| TableLookup::new(table, args.dataset)).transpose()?;
        super::search::search(&config, &args.search, benchmark, world)
    })
}

/// `evaluate-imagenet` and `evaluate-cifar`. Called by all ranks.
pub fn evaluate(args: &EvaluateArgs, space: SearchSpace, published: (&str, &str)) -> Result<()> {
    let config: EvaluateConfig = args.run.settings(published, &[])?;
    config.check_space(space)?;
    with_world(&config, args.run.share_gpu, |world| super::evaluate::evaluate(&config, args, world))
}
