package ondisk

import "encoding/binary"

var le = binary.LittleEndian

// Units and limits of the format (MS-VHDX 2).
const (
	KiB = 1 << 10
	MiB = 1 << 20

	// PageSize is the unit of the log: metadata changes travel in whole pages.
	PageSize = 4096
	// Alignment is that of everything after the header section.
	Alignment = MiB

	MaxVirtualSize   = 64 << 40
	MinBlockSize     = MiB
	MaxBlockSize     = 256 * MiB
	BitmapBlockSize  = MiB
	SectorsPerBitmap = BitmapBlockSize * 8 // one bit per logical sector
)

// The header section, the file's first MiB (MS-VHDX 2.2).
const (
	HeaderSectionSize    = MiB
	IdentifierOffset     = 0
	IdentifierSize       = 8 + creatorSize
	Header1Offset        = 64 * KiB
	Header2Offset        = 128 * KiB
	HeaderSize           = 4096
	RegionTable1Offset   = 192 * KiB
	RegionTable2Offset   = 256 * KiB
	RegionTableSize      = 64 * KiB
	MaxRegionEntries     = 2047
	FirstLoggedOffset    = RegionTable1Offset // no log descriptor may reach below
	creatorSize          = 512
	regionHeaderSize     = 16
	regionEntrySize      = 32
	headerChecksumField  = 4
	regionChecksumField  = 4
	logChecksumField     = 4
	signatureIdentifier  = "vhdxfile"
	signatureHeader      = "head"
	signatureRegionTable = "regi"
)

// What a VHDX file and an entry of its log begin with.
const (
	Signature         = signatureIdentifier
	LogEntrySignature = signatureLogEntry
)

// The metadata region (MS-VHDX 2.6).
const (
	MetadataTableSize       = 64 * KiB
	MaxMetadataEntries      = 2047
	MaxUserMetadataEntries  = 1024
	MaxMetadataItemSize     = MiB
	FileParametersSize      = 8
	VirtualDiskSizeSize     = 8
	VirtualDiskIDSize       = 16
	SectorSizeSize          = 4
	metadataHeaderSize      = 32
	metadataEntrySize       = 32
	signatureMetadata       = "metadata"
	locatorHeaderSize       = 20
	locatorEntrySize        = 12
	MaxParentLocatorEntries = 256 // no rule of the specification; bounds hostile input
)

// The log (MS-VHDX 2.3).
const (
	LogSectorSize      = 4096
	LogEntryHeaderSize = 64
	LogDescriptorSize  = 32
	// DescriptorsInFirstSector is how many descriptors fit beside the header.
	DescriptorsInFirstSector = (LogSectorSize - LogEntryHeaderSize) / LogDescriptorSize
	// MaxLogLength is no rule of the specification; it bounds hostile headers.
	MaxLogLength            = 1 << 30
	dataLeading             = 8    // original bytes that the descriptor holds
	dataTrailing            = 4    //
	dataMiddleEnd           = 4092 // original bytes 8..4091 stay in the data sector
	signatureLogEntry       = "loge"
	signatureZeroDescriptor = "zero"
	signatureDataDescriptor = "desc"
	signatureDataSector     = "data"
)

// MaxBATLength is the BAT region of a 64 TiB disk with 1 MiB blocks.
const MaxBATLength = 513 * MiB

func signature(dst []byte, s string) { copy(dst[:len(s)], s) }
