package pool

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Bounds of what a record may say.
const (
	maxAttachments = 64
	maxNodeID      = 256
	maxFSType      = 32
	maxMkfsOptions = 4096
	maxCommitted   = 1 << 48
	maxSize        = 64 << 40 // of a VHDX
)

// record is a volume's record: volumes/<shard>/<hash>.json.
type record struct {
	stored
	id    volumeID
	extra extras
}

// stored is what is in the file.
type stored struct {
	ID string `json:"id"`
	// Name is the volume's name where that is UTF-8; else NameBytes is.
	Name      string `json:"name,omitempty"`
	NameBytes []byte `json:"nameBytes,omitempty"`
	// Size is what the volume shall have. The image follows.
	Size int64 `json:"size"`
	// Committed is what the volume counts in the account: what its image may
	// take once every block is allocated.
	Committed int64  `json:"committed"`
	Params    Params `json:"params"`
	Use       Use    `json:"use"`
	FSType    string `json:"fsType,omitempty"`
	// Image is the UUID that names its image file, which is written. Of a
	// retired volume there is none.
	Image string `json:"image,omitempty"`
	// Layers are the frozen images below it, from the bottom up, and Origin is
	// what the lowest of all stands on.
	Layers []layer `json:"layers,omitempty"`
	Origin *origin `json:"origin,omitempty"`
	// Source is what the volume was made of; "": of nothing.
	Source string `json:"source,omitempty"`
	// Rebuild is under way: fewer images for the upper layers.
	Rebuild *rebuild `json:"rebuild,omitempty"`
	// Old are images that a rebuild has replaced and somebody may still use.
	Old []layer `json:"old,omitempty"`
	// Import is what an import of several files has left to do.
	Import *imported `json:"import,omitempty"`
	// Retired: the volume is deleted, its layers have snapshots or children yet.
	Retired     bool         `json:"retired,omitempty"`
	Attachments []Attachment `json:"attachments,omitempty"`
	Created     time.Time    `json:"created"`
	Limits      *Limits      `json:"limits,omitempty"`
	OnFull      OnFull       `json:"onFull,omitempty"` // "": what Params say
	// Deleting is the first phase of deletion: the volume is gone for
	// everybody but those who finish that.
	Deleting bool `json:"deleting,omitempty"`
	// Revision counts the replacements of the record.
	Revision uint64 `json:"revision"`
}

func newRecord(p *Pool, spec Spec) *record {
	id := volumeID{pool: p.name, hash: hashOf(spec.Name), inc: newIncarnation()}
	r := &record{id: id, stored: stored{
		ID:        id.String(),
		Size:      spec.Size,
		Committed: spec.footprint(),
		Source:    spec.Source.String(),
		Params:    spec.Params,
		Use:       UseNever,
		Image:     uuid.NewString(),
		Created:   time.Now().UTC().Truncate(time.Millisecond),
		Revision:  1,
	}}
	r.setLimits(spec.Limits)
	r.OnFull = spec.OnFull
	if utf8.ValidString(spec.Name) {
		r.Name = spec.Name
	} else {
		r.NameBytes = []byte(spec.Name)
	}
	return r
}

func (r *record) name() string {
	if r.NameBytes != nil {
		return string(r.NameBytes)
	}
	return r.Name
}

// encode makes what decodeRecord takes, or nothing: a record that could not be
// read back would be a lost volume.
func (r *record) encode() ([]byte, error) {
	b, err := encodeObject(&r.stored, r.extra)
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("volume %s: %w: its record would have %d bytes, at most %d", r.ID, ErrChainFull, len(b), maxFile)
	}
	if err == nil {
		if reason := r.chainFault(); reason != "" {
			err = fmt.Errorf("volume %s: %w: a record of it would not be read back: %s", r.ID, ErrChainFull, reason)
		}
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// decodeRecord takes what encode makes, for the record of pool at h.
func decodeRecord(b []byte, pool string, h hash) (*record, error) {
	r := &record{}
	var err error
	if r.extra, err = decodeObject(b, &r.stored); err != nil {
		return nil, err
	}
	if r.id, err = parseID(r.ID); err != nil {
		return nil, fmt.Errorf("%w: id %.128q is malformed", ErrDamaged, r.ID)
	}
	if reason := r.fault(pool, h); reason != "" {
		return nil, fmt.Errorf("%w: %s", ErrDamaged, reason)
	}
	return r, nil
}

// fault says what is wrong with the values of a record, "" for nothing.
func (r *record) fault(pool string, h hash) string {
	n := r.name()
	switch {
	case r.id.pool != pool:
		return fmt.Sprintf("belongs to pool %s", r.id.pool)
	case r.id.hash != h:
		return "belongs under the name " + r.id.hash.String()
	case n == "" || len(n) > MaxName || hashOf(n) != h || r.Name != "" && r.NameBytes != nil:
		return "its name does not have the hash of its id"
	case r.Size <= 0 || r.Size > maxSize || !r.Retired && r.Committed < r.Size || r.Committed < 0 || r.Committed > maxCommitted:
		return fmt.Sprintf("size %d with committed %d", r.Size, r.Committed)
	case !r.Use.valid():
		return fmt.Sprintf("use %.32q", r.Use)
	case len(r.FSType) > maxFSType || len(r.Attachments) > maxAttachments:
		return "a field is too long"
	case !validImage(r.Image) && !(r.Retired && r.Image == ""):
		return fmt.Sprintf("image %.64q is no UUID", r.Image)
	}
	if reason := r.chainFault(); reason != "" {
		return reason
	}
	for _, a := range r.Attachments {
		if a.Node == "" || len(a.Node) > maxNodeID {
			return "an attachment without a proper node"
		}
	}
	return cmp.Or(r.limits().fault(), r.OnFull.fault(), r.Params.fault())
}

func (u Use) valid() bool { return u == UseNever || u == UseFormatting || u == UseMounted }

// fault says what is wrong with parameters, "" for nothing.
func (p Params) fault() string {
	switch {
	case p.BlockSize < 0 || p.BlockSize > 256<<20:
		return fmt.Sprintf("block size %d is not between 0 and 256 MiB", p.BlockSize)
	case p.LogSize < 0 || p.LogSize > 1<<30:
		return fmt.Sprintf("log size %d is not between 0 and 1 GiB", p.LogSize)
	case p.LogicalSectorSize != 0 && p.LogicalSectorSize != 512 && p.LogicalSectorSize != 4096:
		return fmt.Sprintf("logical sector size %d is neither 512 nor 4096", p.LogicalSectorSize)
	case len(p.FSType) > maxFSType:
		return "filesystem type is too long"
	case len(p.MkfsOptions) > maxMkfsOptions:
		return "mkfs options are too long"
	case p.PauseLimit < 0:
		return fmt.Sprintf("pause limit %d is negative", p.PauseLimit)
	}
	return p.OnFull.fault()
}

func (p Params) sector() int64 {
	if p.LogicalSectorSize != 0 {
		return int64(p.LogicalSectorSize)
	}
	return 512
}

// validImage takes the one spelling of a UUID that becomes a file name.
func validImage(s string) bool {
	u, err := uuid.Parse(s)
	return err == nil && u.String() == s
}

func (p *Pool) recordPath(h hash) string {
	return path.Join(dirVolumes, h.shard(), h.String()+".json")
}

func imagePath(image string) string { return path.Join(dirImages, image[:2], image+".vhdx") }

// readRecord returns the record of a name. fs.ErrNotExist, ErrDamaged, ErrFormat.
func (p *Pool) readRecord(h hash) (*record, error) {
	name := p.recordPath(h)
	b, err := p.readFile(path.Dir(name), path.Base(name), maxFile)
	if err != nil {
		return nil, err
	}
	r, err := decodeRecord(b, p.name, h)
	if err != nil {
		return nil, fmt.Errorf("pool %s: record %s: %w", p.name, name, err)
	}
	return r, nil
}

// live returns the record of a volume that exists, or ErrNotFound.
func (p *Pool) live(id volumeID) (*record, error) {
	r, err := p.readRecord(id.hash)
	if errors.Is(err, fs.ErrNotExist) || err == nil && (r.id != id || r.Deleting) {
		return nil, fmt.Errorf("volume %s: %w", id, ErrNotFound)
	}
	return r, err
}

// replaceRecord writes a changed record. The caller has the volume's lock.
func (p *Pool) replaceRecord(r *record) error {
	r.Revision++
	b, err := r.encode()
	if err != nil {
		return err
	}
	return p.spending(func() error { return p.tree.Replace(p.pathOf(r), b) })
}

func (p *Pool) volume(r *record) Volume {
	from := ""
	if r.Origin != nil {
		from = r.Origin.Volume
	}
	return Volume{
		ID: r.ID, Name: r.name(), Pool: p.name, Size: r.Size, Params: r.Params,
		Use: r.Use, FSType: r.FSType, Created: r.Created, Attachments: r.Attachments,
		Limits: r.limits(), OnFull: r.onFull(), Layers: r.depth() - 1, Origin: from,
		Image: path.Join(p.tree.Name(), imagePath(r.Image)),
	}
}
