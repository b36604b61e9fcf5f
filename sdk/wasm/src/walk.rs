//! Walks through the sections of a wasm file (core specification 5.5, component model `Binary.md`), reads those that
//! are of interest and skips the others.

use std::io::{BufReader, Read, Seek, SeekFrom};

use brig_api::wasm::{WasmFacts, WasmForm, WasmKind, WasmMemory};
use wasmparser::{
    BinaryReader, ComponentAlias, ComponentAliasSectionReader, ComponentExportSectionReader,
    ComponentExternalKind, ComponentImportSectionReader, ComponentOuterAliasKind, ComponentTypeRef,
    ExportSectionReader, ExternalKind, ImportSectionReader, Instance, InstanceSectionReader,
    MemorySectionReader, ProducersSectionReader,
};

use crate::names::Seen;
use crate::{InspectError, form_of, tally};

/// Most bytes that are read of one file. A million imports are less.
pub const READ_BYTES_MAX: u64 = 32 << 20;
/// Most sections that are looked at, over all levels. Real components have some hundred.
const SECTIONS_MAX: u32 = 100_000;
/// Most levels of components in components; tools make three or four.
const LEVELS_MAX: usize = 64;
/// Most core modules of one component that are kept apart; of more, memories are unknown.
const MODULES_MAX: usize = 10_000;
/// Longest custom section that is read for the names of tools.
const PRODUCERS_BYTES_MAX: u64 = 64 << 10;
/// Read at a time: most headers of sections lie within it.
const BUFFER_BYTES: usize = 8 << 10;
const HEADER_BYTES: u64 = 8;

/// A module or component that is being walked through.
struct Level {
    form: WasmForm,
    /// The first byte after it.
    end: u64,
    /// Memories of a module; of a component those of what it instantiates.
    memory: WasmMemory,
    /// Of a component: the memories of its core modules, by index; None for those from elsewhere.
    modules: Vec<Option<WasmMemory>>,
}

impl Level {
    fn add_module(&mut self, memory: Option<WasmMemory>) {
        if self.modules.len() < MODULES_MAX {
            self.modules.push(memory);
        }
    }
}

/// Why walking ends before the end.
enum Stop {
    /// It would cost too much.
    TooMuch,
    Failed(InspectError),
}

impl From<InspectError> for Stop {
    fn from(error: InspectError) -> Self {
        Self::Failed(error)
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl From<wasmparser::Error> for Stop {
    fn from(error: wasmparser::Error) -> Self {
        Self::Failed(InspectError::Broken {
            offset: error.offset() as u64,
            why: error.message().to_owned(),
        })
    }
}

struct Walk<R> {
    file: BufReader<R>,
    position: u64,
    /// Bytes that may still be read.
    budget: u64,
    sections: u32,
    seen: Seen,
}

pub(crate) fn walk<R: Read + Seek>(mut file: R) -> Result<WasmFacts, InspectError> {
    let length = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    let mut walk = Walk {
        file: BufReader::with_capacity(BUFFER_BYTES, file),
        position: 0,
        budget: READ_BYTES_MAX,
        sections: 0,
        seen: Seen::default(),
    };
    let head = match walk.read(length.min(HEADER_BYTES)) {
        Ok(head) => head,
        Err(Stop::Failed(error)) => return Err(error),
        Err(Stop::TooMuch) => Vec::new(),
    };
    let form = form_of(&head).ok_or(InspectError::NotWasm)?;
    match walk.sections(form, length) {
        Ok(memory) => Ok(facts(form, walk.seen.kind(), memory, walk.seen)),
        Err(Stop::TooMuch) => Ok(facts(form, WasmKind::Unknown, tally::NONE, walk.seen)),
        Err(Stop::Failed(error)) => Err(error),
    }
}

fn facts(form: WasmForm, kind: WasmKind, memory: WasmMemory, seen: Seen) -> WasmFacts {
    WasmFacts {
        form,
        kind,
        memory,
        capabilities: seen.capabilities,
        names_left_out: seen.imports.left_out.saturating_add(seen.exports.left_out),
        foreign: seen.foreign.kept,
        imports: seen.imports.kept,
        exports: seen.exports.kept,
        languages: seen.languages,
        tools: seen.tools,
    }
}

impl<R: Read + Seek> Walk<R> {
    /// Walks to the end of the file; the memories of the whole.
    fn sections(&mut self, form: WasmForm, length: u64) -> Result<WasmMemory, Stop> {
        let top = Level { form, end: length, memory: tally::NONE, modules: Vec::new() };
        let mut levels = vec![top];
        while let Some(level) = levels.last_mut() {
            if self.position == level.end {
                let Some(done) = levels.pop() else { break };
                match levels.last_mut() {
                    None => return Ok(done.memory),
                    Some(above) if done.form == WasmForm::Module => {
                        above.add_module(Some(done.memory));
                    }
                    // Taken to be instantiated once: nobody ships a component to leave it lying.
                    Some(above) => above.memory = tally::sum(above.memory, done.memory),
                }
                continue;
            }
            let (id, end) = self.section(level.end)?;
            let inner = match (level.form, id) {
                (WasmForm::Component, 1) => Some(WasmForm::Module),
                (WasmForm::Component, 4) => Some(WasmForm::Component),
                _ => None,
            };
            let Some(form) = inner else {
                let is_outermost = levels.len() == 1;
                if let Some(level) = levels.last_mut() {
                    self.content(level, is_outermost, id, end)?;
                }
                self.skip_to(end)?;
                continue;
            };
            if levels.len() >= LEVELS_MAX {
                return Err(Stop::TooMuch);
            }
            self.inner_header(form, end)?;
            levels.push(Level { form, end, memory: tally::NONE, modules: Vec::new() });
        }
        Ok(tally::NONE)
    }

    /// The id of the next section and the first byte after it.
    fn section(&mut self, level_end: u64) -> Result<(u8, u64), Stop> {
        self.sections += 1;
        if self.sections > SECTIONS_MAX {
            return Err(Stop::TooMuch);
        }
        let offset = self.position;
        let id = self.byte()?;
        let size = self.number()?;
        let end = self.position + u64::from(size);
        if end > level_end {
            let why = format!("a section ends {} bytes after the end", end - level_end);
            return Err(InspectError::Broken { offset, why }.into());
        }
        Ok((id, end))
    }

    fn inner_header(&mut self, form: WasmForm, end: u64) -> Result<(), Stop> {
        let offset = self.position;
        let head = self.read((end - offset).min(HEADER_BYTES))?;
        if form_of(&head) != Some(form) {
            let why = "what is within it does not begin as wasm does".to_owned();
            return Err(InspectError::Broken { offset, why }.into());
        }
        Ok(())
    }

    /// Takes from a section what is of interest.
    fn content(
        &mut self,
        level: &mut Level,
        is_outermost: bool,
        id: u8,
        end: u64,
    ) -> Result<(), Stop> {
        match (level.form, id) {
            (_, 0) => self.custom(end),
            (WasmForm::Module, 2) if is_outermost => self.module_imports(end),
            (WasmForm::Module, 5) => self.memories(level, end),
            (WasmForm::Module, 7) if is_outermost => self.module_exports(end),
            (WasmForm::Component, 2) => self.core_instances(level, end),
            (WasmForm::Component, 6) => self.aliases(level, end),
            (WasmForm::Component, 10) => self.component_imports(level, is_outermost, end),
            (WasmForm::Component, 11) => self.component_exports(level, is_outermost, end),
            _ => Ok(()),
        }
    }

    fn module_imports(&mut self, end: u64) -> Result<(), Stop> {
        let (bytes, offset) = self.rest(end)?;
        let section = ImportSectionReader::new(BinaryReader::new(&bytes, offset))?;
        for import in section.into_imports() {
            let import = import?;
            self.seen.module_import(import.module, import.name);
        }
        Ok(())
    }

    fn module_exports(&mut self, end: u64) -> Result<(), Stop> {
        let (bytes, offset) = self.rest(end)?;
        for export in ExportSectionReader::new(BinaryReader::new(&bytes, offset))? {
            let export = export?;
            let is_function = export.kind == ExternalKind::Func;
            self.seen.export(WasmForm::Module, export.name, is_function);
        }
        Ok(())
    }

    fn memories(&mut self, level: &mut Level, end: u64) -> Result<(), Stop> {
        let (bytes, offset) = self.rest(end)?;
        for memory in MemorySectionReader::new(BinaryReader::new(&bytes, offset))? {
            level.memory = tally::with(level.memory, &memory?);
        }
        Ok(())
    }

    /// A module has its memories once for each time that it is instantiated.
    fn core_instances(&mut self, level: &mut Level, end: u64) -> Result<(), Stop> {
        let (bytes, offset) = self.rest(end)?;
        for instance in InstanceSectionReader::new(BinaryReader::new(&bytes, offset))? {
            let Instance::Instantiate { module_index, .. } = instance? else { continue };
            let index = usize::try_from(module_index).unwrap_or(usize::MAX);
            if let Some(Some(memory)) = level.modules.get(index) {
                level.memory = tally::sum(level.memory, *memory);
            }
        }
        Ok(())
    }

    /// Modules from elsewhere have a place in the order of modules too.
    fn aliases(&mut self, level: &mut Level, end: u64) -> Result<(), Stop> {
        let (bytes, offset) = self.rest(end)?;
        for alias in ComponentAliasSectionReader::new(BinaryReader::new(&bytes, offset))? {
            let is_module = match alias? {
                ComponentAlias::InstanceExport { kind, .. } => {
                    kind == ComponentExternalKind::Module
                }
                ComponentAlias::Outer { kind, .. } => kind == ComponentOuterAliasKind::CoreModule,
                ComponentAlias::CoreInstanceExport { .. } => false,
            };
            if is_module {
                level.add_module(None);
            }
        }
        Ok(())
    }

    fn component_imports(
        &mut self,
        level: &mut Level,
        is_outermost: bool,
        end: u64,
    ) -> Result<(), Stop> {
        let (bytes, offset) = self.rest(end)?;
        for import in ComponentImportSectionReader::new(BinaryReader::new(&bytes, offset))? {
            let import = import?;
            if matches!(import.ty, ComponentTypeRef::Module(_)) {
                level.add_module(None);
            }
            if is_outermost {
                self.seen.component_import(import.name.name);
            }
        }
        Ok(())
    }

    fn component_exports(
        &mut self,
        level: &mut Level,
        is_outermost: bool,
        end: u64,
    ) -> Result<(), Stop> {
        let (bytes, offset) = self.rest(end)?;
        for export in ComponentExportSectionReader::new(BinaryReader::new(&bytes, offset))? {
            let export = export?;
            if export.kind == ComponentExternalKind::Module {
                // The export has an index of its own.
                let index = usize::try_from(export.index).unwrap_or(usize::MAX);
                let memory = level.modules.get(index).copied().flatten();
                level.add_module(memory);
            }
            if is_outermost {
                let is_function = export.kind == ComponentExternalKind::Func;
                self.seen.export(WasmForm::Component, export.name.name, is_function);
            }
        }
        Ok(())
    }

    /// What made the file. A custom section can't make a file wrong, so what can't be read is left.
    fn custom(&mut self, end: u64) -> Result<(), Stop> {
        if end - self.position > PRODUCERS_BYTES_MAX {
            return Ok(());
        }
        let (bytes, offset) = self.rest(end)?;
        let mut reader = BinaryReader::new(&bytes, offset);
        if reader.read_string().is_ok_and(|name| name == "producers") {
            // Half of it is better than nothing.
            let _ = self.producers(reader);
        }
        Ok(())
    }

    fn producers(&mut self, reader: BinaryReader<'_>) -> Result<(), wasmparser::Error> {
        for field in ProducersSectionReader::new(reader)? {
            let field = field?;
            for value in field.values {
                let value = value?;
                self.seen.producer(field.name == "language", value.name, value.version);
            }
        }
        Ok(())
    }

    /// The rest of a section, and where it begins.
    fn rest(&mut self, end: u64) -> Result<(Vec<u8>, usize), Stop> {
        let offset = usize::try_from(self.position).unwrap_or(usize::MAX);
        let bytes = self.read(end.saturating_sub(self.position))?;
        Ok((bytes, offset))
    }

    fn read(&mut self, count: u64) -> Result<Vec<u8>, Stop> {
        self.budget = self.budget.checked_sub(count).ok_or(Stop::TooMuch)?;
        let mut bytes = Vec::new();
        (&mut self.file).take(count).read_to_end(&mut bytes)?;
        self.position += bytes.len() as u64;
        if bytes.len() as u64 != count {
            return Err(self.cut_off());
        }
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, Stop> {
        let mut byte = [0];
        match self.file.read(&mut byte)? {
            0 => Err(self.cut_off()),
            _ => {
                self.position += 1;
                Ok(byte[0])
            }
        }
    }

    /// A number of 32 bits in LEB128.
    fn number(&mut self) -> Result<u32, Stop> {
        let offset = self.position;
        let mut number = 0_u64;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        u32::try_from(number).map_err(|_| {
            let why = "the length of a section is no number of 32 bits".to_owned();
            InspectError::Broken { offset, why }.into()
        })
    }

    fn skip_to(&mut self, end: u64) -> Result<(), Stop> {
        let distance = end.saturating_sub(self.position);
        self.file.seek_relative(i64::try_from(distance).unwrap_or(i64::MAX))?;
        self.position = end;
        Ok(())
    }

    fn cut_off(&self) -> Stop {
        InspectError::Broken { offset: self.position, why: "it ends too early".to_owned() }.into()
    }
}
