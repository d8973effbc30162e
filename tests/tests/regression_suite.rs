//! PostgreSQL's own regression suite on a published instance. `./test` makes it of the distribution's source package and names
//! its directory.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use tests::postgres::{OS_USER, as_postgres, give_to_postgres, installations};
use tests::small_repository::SmallRepository;
use tests::system::TestSystem;

/// Names the directory with `sql`, `expected`, `data`, `parallel_schedule` and the suite's libraries.
const SUITE_VARIABLE: &str = "PGINSTANT_TEST_REGRESSION_SUITE";

#[tokio::test]
async fn postgresqls_own_regression_suite_passes_on_a_published_instance() -> Result<()> {
    let suite = std::env::var_os(SUITE_VARIABLE).map(PathBuf::from);
    let suite = suite.with_context(|| format!("{SUITE_VARIABLE} is not set; ./test sets it"))?;
    let repository = SmallRepository::new()?;
    let system = TestSystem::start(repository.path()).await?;
    let (id, detail) = system.publish(&["--backup", "monday"]).await?;
    let published = detail.published.as_ref().context("where it is published")?;

    let installation = installations().into_iter().find(|found| found.major == 15);
    let bin = installation.context("PostgreSQL 15 is not installed")?.bin;
    let program = bin.join("../lib/pgxs/src/test/regress/pg_regress");
    let output_directory = system.path("regression");
    std::fs::create_dir(&output_directory)?;
    give_to_postgres(&output_directory)?;
    let mut command = as_postgres(&program);
    for (option, path) in [
        ("inputdir", &suite),
        ("dlpath", &suite),
        ("outputdir", &output_directory),
        ("bindir", &bin),
        ("host", &published.socket_directory),
        ("schedule", &suite.join("parallel_schedule")),
    ] {
        command.arg(format!("--{option}={}", path.display()));
    }
    command
        .arg(format!("--port={}", published.port))
        .arg(format!("--user={OS_USER}"))
        .arg("--max-concurrent-tests=20")
        .current_dir(&output_directory);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let differences = std::fs::read_to_string(output_directory.join("regression.diffs"));
    ensure!(
        output.status.success(),
        "{text}{}\n{}",
        String::from_utf8_lossy(&output.stderr),
        differences.unwrap_or_default()
    );
    let passed = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("All ")?.split(' ').next())
        .find_map(|count| count.parse::<u32>().ok());
    ensure!(passed.is_some_and(|count| count > 200), "{text}");
    println!("{} tests of PostgreSQL passed", passed.unwrap_or_default());

    // Every page that the suite left behind is sound.
    let amcheck = "CREATE EXTENSION amcheck";
    system.sql(&detail, "regression", amcheck).await?;
    let relations = "SELECT count(*) FROM pg_class c, LATERAL bt_index_check(c.oid, true) \
         WHERE relkind = 'i' AND relam = (SELECT oid FROM pg_am WHERE amname = 'btree') \
         AND relpersistence <> 't' AND (SELECT indisvalid FROM pg_index WHERE indexrelid = c.oid)";
    let checked = system.sql(&detail, "regression", relations).await?;
    ensure!(checked.parse::<u32>()? > 200, "{checked} indexes");
    let unpublished = system.explorer(&["unpublish", &id]).await?;
    ensure!(unpublished.status.success(), "{unpublished:?}");
    system.nothing_is_left_of(&id)
}
