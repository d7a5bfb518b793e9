package fusewire

// The protocol version spoken. The minor one is what INIT answers; the kernel
// and the server use the smaller of theirs and this.
const (
	KernelVersion      = 7
	KernelMinorVersion = 38
	// MinMinorVersion is the oldest with everything used here: INIT's flags2
	// (7.36, Linux 5.17).
	MinMinorVersion = 36
)

// RootID is the node id of the root directory.
const RootID = 1

// Opcode says what a request asks for.
type Opcode uint32

// The operations that a server of one file may see.
const (
	OpLookup      Opcode = 1
	OpForget      Opcode = 2 // no reply
	OpGetattr     Opcode = 3
	OpSetattr     Opcode = 4
	OpOpen        Opcode = 14
	OpRead        Opcode = 15
	OpWrite       Opcode = 16
	OpStatfs      Opcode = 17
	OpRelease     Opcode = 18
	OpFsync       Opcode = 20
	OpGetxattr    Opcode = 22
	OpFlush       Opcode = 25
	OpInit        Opcode = 26
	OpAccess      Opcode = 34
	OpInterrupt   Opcode = 36 // no reply
	OpDestroy     Opcode = 38
	OpBatchForget Opcode = 42 // no reply
	OpFallocate   Opcode = 43
	OpLseek       Opcode = 46
	OpSyncfs      Opcode = 50
	OpStatx       Opcode = 52
)

// UniqueResend marks, in a unique id, a request that the kernel sent again
// after NOTIFY_RESEND. The reply echoes it.
const UniqueResend = uint64(1) << 63

// Flags of INIT; those from bit 32 on travel in flags2.
const (
	AsyncRead     = uint64(1) << 0
	BigWrites     = uint64(1) << 5
	AsyncDIO      = uint64(1) << 15
	ParallelDirOp = uint64(1) << 18
	MaxPages      = uint64(1) << 22
	InitExt       = uint64(1) << 30
	HasResend     = uint64(1) << 39
)

// Flags of the reply to OPEN.
const (
	FopenDirectIO             = 1 << 0
	FopenParallelDirectWrites = 1 << 6
)

// FsyncFdatasync in FsyncIn.Flags: data only.
const FsyncFdatasync = 1 << 0

// Modes of FALLOCATE, those of fallocate(2).
const (
	FallocKeepSize  = 0x01
	FallocPunchHole = 0x02
	FallocZeroRange = 0x10
)

// NotifyCode says what a notification is about.
type NotifyCode int32

// The notifications used.
const (
	NotifyInvalInode NotifyCode = 2
	NotifyResend     NotifyCode = 7 // Linux 6.9
)

// Sizes of the structures, in bytes.
const (
	SizeInHeader    = 40
	SizeOutHeader   = 16
	SizeInitIn      = 64
	SizeInitOut     = 64
	SizeAttr        = 88
	SizeAttrOut     = 16 + SizeAttr
	SizeEntryOut    = 40 + SizeAttr
	SizeOpenOut     = 16
	SizeReadIn      = 40
	SizeWriteIn     = 40
	SizeWriteOut    = 8
	SizeFsyncIn     = 16
	SizeFallocateIn = 32
	SizeStatfsOut   = 80

	sizeInitInOld = 16 // before INIT_EXT
)
