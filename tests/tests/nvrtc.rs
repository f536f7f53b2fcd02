//! The kernels of every registered layer, of every form of region and of the library in CUDA C++, compiled by NVRTC for two kinds of cards on
//! a machine that has none: each compiles, maps, rows and kernels of tensor cores spill no register, and what ptxas says that each takes is a committed table.

use kiln::DType;
use kiln::check::kernels::{Extents, KernelCase, cases};
use kiln::device::cube::{Arch, Arithmetic, Binding, CudaCompiler, CudaSource, LibraryKernel, library_kernels};
use kiln_compiler::fuse::Region;
use kiln_tests::nvrtc::{Nvrtc, Usage};
use kiln_tests::{folders, regions, skips, snapshot};
use libtest_mimic::{Arguments, Failed, Trial};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex};

/// One library for all cases.
static NVRTC: LazyLock<Result<Nvrtc, String>> = LazyLock::new(|| Nvrtc::open(&skips::nvrtc()?));

/// What was compiled, by architecture and code: layers share kernels that differ in their names alone.
static COMPILED: Mutex<BTreeMap<(&'static str, String), Usage>> = Mutex::new(BTreeMap::new());

/// What a launch may take of shared memory without asking for more.
const SHARED: usize = 48 << 10;

/// A kernel in one of the forms in which models launch it.
#[derive(Clone)]
enum Kernel {
    Emitted(Box<KernelCase>, Extents, DType),
    /// A region, its number of element types and its number of sizes: the program walked, as without a macro.
    Walked(Arc<regions::Case>, usize, usize),
    Library(LibraryKernel),
}

impl Kernel {
    /// Its name in the table.
    fn name(&self) -> String {
        match self {
            Kernel::Emitted(case, extents, compute) => {
                let sizes = format!("{extents:?}").to_lowercase();
                format!("{}/{} {compute} {sizes}", case.layer, case.name)
            }
            Kernel::Walked(case, types, sizes) => {
                let types: Vec<String> = case.dtypes[*types].iter().map(DType::to_string).collect();
                let sizes: Vec<String> = case.sizes[*sizes].iter().map(|(axis, n)| format!("{axis}={n}")).collect();
                [vec![case.name.to_owned(), types.join(",")], sizes].concat().join(" ")
            }
            Kernel::Library(kernel) => kernel.to_string(),
        }
    }

    /// The table that it stands in.
    fn table(&self) -> &'static str {
        match self {
            Kernel::Emitted(..) => "emitted",
            Kernel::Walked(..) => "walked",
            Kernel::Library(_) => "library",
        }
    }

    fn source(&self, arch: Arch) -> Result<CudaSource, Failed> {
        let compiler = CudaCompiler::new(arch);
        match self {
            Kernel::Emitted(case, extents, compute) => Ok(case.cuda(&compiler, *extents, *compute)?),
            Kernel::Walked(case, types, sizes) => {
                let region = Region { dtypes: case.dtypes[*types].clone(), ..case.region.clone() };
                let sizes = case.bound(*sizes);
                let binding = Binding { sizes: &sizes, dtype: &|d| d, part: &|_| None };
                Ok(compiler.region(&Arc::new(region), None, &binding)?)
            }
            Kernel::Library(kernel) => Ok(compiler.library(kernel)?),
        }
    }
}

/// Layers: vectors in each precision, one element at a time in f32, and rows of several vectors for each unit in bf16. Regions of tests: all their sizes and types.
fn kernels() -> Vec<Kernel> {
    let mut all = Vec::new();
    for case in cases().expect("registered layers compile") {
        let precisions: &[DType] = match case.has_compute_type() {
            true => &[DType::F32, DType::Bf16, DType::F16],
            false => &[DType::F32],
        };
        let case = Box::new(case);
        all.extend(precisions.iter().map(|&compute| Kernel::Emitted(case.clone(), Extents::Wide, compute)));
        // Rows of 768 are those of models, not of what only tests have.
        if case.region.has_rows() && case.layer.starts_with("kiln_examples") {
            all.push(Kernel::Emitted(case.clone(), Extents::Full, precisions[precisions.len().min(2) - 1]));
        }
        all.push(Kernel::Emitted(case, Extents::Odd, DType::F32));
    }
    for case in regions::cases() {
        let case = Arc::new(case);
        let forms = (0..case.dtypes.len()).flat_map(|t| (0..case.sizes.len()).map(move |s| (t, s)));
        all.extend(forms.map(|(types, sizes)| Kernel::Walked(case.clone(), types, sizes)));
    }
    all.extend(library_kernels().into_iter().map(Kernel::Library));
    all
}

/// Rows by table, then by kernel and architecture.
type Rows = BTreeMap<&'static str, BTreeMap<(String, &'static str), String>>;

const TABLES: [&str; 3] = ["emitted", "library", "walked"];

fn main() {
    let arguments = Arguments::from_args();
    let kernels = kernels();
    let committed = Arc::new(TABLES.iter().map(|&table| (table, read(table))).collect::<Rows>());
    let made = Arc::new(Mutex::new(Rows::new()));
    let mut trials = Vec::new();
    for kernel in &kernels {
        let name = format!("nvrtc/{}/{}", kernel.table(), kernel.name());
        let (kernel, committed, made) = (kernel.clone(), committed.clone(), made.clone());
        trials.push(Trial::test(name.clone(), move || compile(&name, &kernel, &committed, &made)));
    }
    let expected = keys(&kernels);
    let (rows, committed_rows) = (expected.clone(), committed.clone());
    trials.push(Trial::test("every kernel has a row for each architecture", move || {
        let number = kernels.len() * Arch::ALL.len();
        complete(&rows, &committed_rows, number)
    }));
    let conclusion = libtest_mimic::run(&arguments, trials);
    if snapshot::blessing() && !arguments.list {
        let made = made.lock().expect("no case panics with the lock");
        write(&expected, &committed, &made);
    }
    conclusion.exit();
}

/// Kernel and architecture of every row, by table.
fn keys(kernels: &[Kernel]) -> BTreeMap<&'static str, BTreeSet<(String, &'static str)>> {
    let mut keys: BTreeMap<&str, BTreeSet<_>> = BTreeMap::new();
    for kernel in kernels {
        keys.entry(kernel.table()).or_default().extend(Arch::ALL.map(|arch| (kernel.name(), arch.name())));
    }
    keys
}

fn compile(name: &str, kernel: &Kernel, committed: &Rows, made: &Mutex<Rows>) -> Result<(), Failed> {
    let nvrtc = match &*NVRTC {
        Ok(nvrtc) => nvrtc,
        Err(reason) if skips::nvrtc().is_err() => {
            skips::skip(name, reason);
            return Ok(());
        }
        Err(reason) => return Err(reason.into()),
    };
    for arch in Arch::ALL {
        let source = kernel.source(arch)?;
        let again = kernel.source(arch)?;
        if let Some(difference) = snapshot::first_difference(&source.code, &again.code) {
            return Err(format!("{name} for {arch} has other code the second time, {difference}").into());
        }
        let usage = compiled(nvrtc, &source).map_err(|log| format!("{name} for {arch}: {log}\n{}", source.code))?;
        let shared = usage.shared + source.shared_bytes;
        if shared > SHARED {
            return Err(format!("{name} for {arch} takes {shared} bytes of shared memory").into());
        }
        let spills = usage.spill_stores + usage.spill_loads;
        if source.arithmetic != Arithmetic::Contracted && spills > 0 {
            return Err(format!("{name} for {arch} spills: {usage:?}").into());
        }
        let key = (kernel.name(), arch.name());
        let row = format!(
            "{:<78} {:<6} {:>5} {:>5} {:>9} {:>6} {:>5} {:>6} {:>5}",
            key.0,
            key.1,
            source.width,
            source.units,
            usage.registers,
            shared,
            usage.stack,
            usage.spill_stores,
            usage.spill_loads
        );
        if snapshot::blessing() {
            made.lock().expect("no case panics with the lock").entry(kernel.table()).or_default().insert(key, row);
        } else if committed[kernel.table()].get(&key) != Some(&row) {
            let old = committed[kernel.table()].get(&key).map_or("(no row)", String::as_str);
            return Err(format!("the table differs (BLESS=1 rewrites it)\n  expected: {old}\n  actual:   {row}").into());
        }
    }
    Ok(())
}

/// What NVRTC says, asked once for each code.
fn compiled(nvrtc: &Nvrtc, source: &CudaSource) -> Result<Usage, String> {
    const ENTRY: &str = "kernel";
    let code = source.code.replace(&format!("{} (\n", source.name), &format!("{ENTRY} (\n"));
    let key = (source.arch.name(), code);
    if let Some(usage) = COMPILED.lock().expect("no case panics with the lock").get(&key) {
        return Ok(*usage);
    }
    let usage = nvrtc.compile(&key.1, ENTRY, &source.options())?;
    COMPILED.lock().expect("no case panics with the lock").insert(key, usage);
    Ok(usage)
}

/// The committed tables hold each kernel for each architecture, and nothing else.
fn complete(
    expected: &BTreeMap<&'static str, BTreeSet<(String, &'static str)>>,
    committed: &Rows,
    number: usize,
) -> Result<(), Failed> {
    assert_eq!(expected.values().map(BTreeSet::len).sum::<usize>(), number, "two kernels share a name");
    if snapshot::blessing() {
        return Ok(());
    }
    for (table, keys) in expected {
        let rows: BTreeSet<_> = committed[table].keys().cloned().collect();
        let absent = keys.difference(&rows).map(|key| format!("no row: {key:?}"));
        let gone = rows.difference(keys).map(|key| format!("no kernel: {key:?}"));
        let differences: Vec<String> = absent.chain(gone).collect();
        if !differences.is_empty() {
            return Err(format!("table `{table}` (BLESS=1 rewrites it)\n{}", differences.join("\n")).into());
        }
    }
    assert_eq!(committed.values().map(BTreeMap::len).sum::<usize>(), number);
    Ok(())
}

fn path(table: &str) -> PathBuf {
    folders::root().join(format!("tests/golden/nvrtc/{table}.txt"))
}

/// The committed rows of a table; none if there is no file.
fn read(table: &str) -> BTreeMap<(String, &'static str), String> {
    let text = std::fs::read_to_string(path(table)).unwrap_or_default();
    let mut rows = BTreeMap::new();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let found = Arch::ALL.iter().find_map(|a| Some((line.split_once(&format!(" {a} "))?.0, a.name())));
        let (kernel, arch) = found.unwrap_or_else(|| panic!("{table}.txt: no architecture in `{line}`"));
        rows.insert((kernel.trim_end().to_owned(), arch), line.to_owned());
    }
    rows
}

/// Rewrites the tables: rows that were not made in this run stay, those of no kernel go.
fn write(expected: &BTreeMap<&'static str, BTreeSet<(String, &'static str)>>, committed: &Rows, made: &Rows) {
    for (table, keys) in expected {
        let mut text = format!(
            "# {:<76} {:<6} {:>5} {:>5} {:>9} {:>6} {:>5} {:>6} {:>5}\n",
            "kernel", "arch", "lanes", "units", "registers", "shared", "stack", "stores", "loads"
        );
        for key in keys {
            let row = made.get(table).and_then(|rows| rows.get(key)).or_else(|| committed[table].get(key));
            if let Some(row) = row {
                writeln!(text, "{row}").expect("text grows");
            }
        }
        snapshot::check(&path(table), &text).expect("the table can be written");
    }
}
