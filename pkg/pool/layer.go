package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
)

// A volume's images are a chain: Image is written, Layers below it are frozen
// for ever. A snapshot is the name of a layer. The record names them all, so
// that one replacement of it moves the volume to a new image and makes the old
// one a snapshot (I-POOL-15).

// Bounds of a chain. The format's library opens 256 images at most.
const (
	maxLayers = 128 // of one volume
	maxDepth  = 240 // with what it stands on
)

// layer is a frozen image.
type layer struct {
	Image string `json:"image"`
	// Snapshot is the id of the snapshot that the layer is; "": of none, or of
	// none any more.
	Snapshot string `json:"snapshot,omitempty"`
	// Size is that of the disk, Bytes what the file takes on the share.
	Size        int64       `json:"size"`
	Bytes       int64       `json:"bytes"`
	Use         Use         `json:"use"`
	FSType      string      `json:"fsType,omitempty"`
	Consistency Consistency `json:"consistency,omitempty"`
	Created     time.Time   `json:"created"`
}

// origin is a layer of another volume.
type origin struct {
	Volume string `json:"volume"`
	Image  string `json:"image"`
	// Depth is how many images there are from it down, itself included; 0: the
	// volume has been put on its own feet, and only old images stand there.
	Depth int `json:"depth"`
	// As is the name under which the volume has announced itself there.
	As string `json:"as"`
}

// Consistency says what a filesystem in a snapshot is like.
type Consistency string

// The consistencies.
const (
	ConsistentCrash      Consistency = "crash"      // as after a power cut
	ConsistentFilesystem Consistency = "filesystem" // synced and frozen, or unmounted
)

// chainFault says what is wrong with the images of a record, "" for nothing.
func (r *record) chainFault() string {
	all := r.layers()
	if len(r.Layers) > maxLayers || len(all) > 4*maxLayers {
		return fmt.Sprintf("%d layers", len(all))
	}
	seen := map[string]bool{r.Image: true}
	for _, l := range all {
		switch {
		case !validImage(l.Image) || seen[l.Image]:
			return fmt.Sprintf("layer %.64q is no UUID, or is there twice", l.Image)
		case l.Bytes < 0 || l.Bytes > maxCommitted || l.Size < 0 || l.Size > maxSize:
			return fmt.Sprintf("layer %s has %d bytes of a disk of %d", l.Image, l.Bytes, l.Size)
		case len(l.FSType) > maxFSType || l.Use != "" && !l.Use.valid() || len(l.Snapshot) > maxIDLen:
			return fmt.Sprintf("layer %s: use %.32q", l.Image, l.Use)
		}
		seen[l.Image] = true
	}
	if o := r.Origin; o != nil && (!validImage(o.Image) || !validImage(o.As) || o.Depth < 0 || o.Depth > maxDepth || len(o.Volume) > maxIDLen) {
		return fmt.Sprintf("origin %.64q at depth %d", o.Image, o.Depth)
	}
	return cmp.Or(r.Rebuild.fault(len(r.Layers)), r.Import.fault())
}

// layers are all frozen images that the record names.
func (r *record) layers() []layer {
	all := slices.Concat(r.Layers, r.Old)
	if r.Rebuild != nil {
		for _, n := range r.Rebuild.New {
			all = append(all, layer{Image: n.Image, Bytes: n.Bytes})
		}
	}
	return all
}

// names reports whether the record names an image.
func (r *record) names(image string) bool {
	return r.Image == image || slices.ContainsFunc(r.layers(), func(l layer) bool { return l.Image == image })
}

// frozenBytes is what all frozen images take; the account counts it beside
// what the image that is written may grow to.
func (r *record) frozenBytes() (n int64) {
	for _, l := range r.layers() {
		n += l.Bytes
	}
	return n
}

// depth is how many images an open of the volume opens.
func (r *record) depth() int {
	n := len(r.Layers) + 1
	if r.Origin != nil {
		n += r.Origin.Depth
	}
	return n
}

// headFootprint is [footprint] of the image that is written, which has sector
// bitmaps if it is a child.
func (r *record) headFootprint(size int64) int64 {
	n := footprint(size, r.Params)
	if len(r.Layers) > 0 || r.Origin != nil {
		n += bitmapBytes(size)
	}
	return n
}

// bitmapBytes is what sector bitmaps take: a MiB for each 4 GiB of the disk, of
// 512-byte sectors.
func bitmapBytes(size int64) int64 { return roundUp(size, 4<<30) >> 12 }

// snapshot returns the layer that is a snapshot.
func (r *record) snapshot(id string) (layer, bool) {
	i := slices.IndexFunc(r.Layers, func(l layer) bool { return l.Snapshot == id })
	if i < 0 {
		return layer{}, false
	}
	return r.Layers[i], true
}

// retiredPath is where the record of a deleted volume is kept for its snapshots.
func retiredPath(id volumeID) string {
	h := hashOf(id.String())
	return path.Join(dirRetired, h.shard(), h.String()+".json")
}

func (p *Pool) pathOf(r *record) string {
	if r.Retired {
		return retiredPath(r.id)
	}
	return p.recordPath(r.id.hash)
}

// lineage returns the record of a volume that exists, or of one whose snapshots
// do. ErrNotFound; ErrBusy while it is being deleted.
func (p *Pool) lineage(id volumeID) (*record, error) {
	r, err := p.layered(id)
	if err == nil && r.Deleting {
		return nil, fmt.Errorf("volume %s: %w: it is being deleted", id, ErrBusy)
	}
	return r, err
}

// layered is lineage for who only looks at snapshots. Those of a volume that is
// being deleted are in its record until that retires.
func (p *Pool) layered(id volumeID) (*record, error) {
	r, err := p.readRecord(id.hash)
	switch {
	case err == nil && r.id == id:
		return r, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	if r, err = p.readRetired(id); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("volume %s: %w", id, ErrNotFound)
	}
	return r, err
}

func (p *Pool) readRetired(id volumeID) (*record, error) {
	name := retiredPath(id)
	b, err := p.readFile(path.Dir(name), path.Base(name), maxFile)
	if err != nil {
		return nil, err
	}
	r, err := decodeRetired(b, p.name, hashOf(id.String()))
	if err != nil {
		return nil, fmt.Errorf("pool %s: record %s: %w", p.name, name, err)
	}
	return r, nil
}

// decodeRetired is decodeRecord for a record that lies under the hash of its id.
func decodeRetired(b []byte, pool string, h hash) (*record, error) {
	var peek stored
	if _, err := decodeObject(b, &peek); err != nil {
		return nil, err
	}
	id, err := parseID(peek.ID)
	if err != nil || hashOf(peek.ID) != h || !peek.Retired {
		return nil, fmt.Errorf("%w: it is no retired volume's, or another's: %.128q", ErrDamaged, peek.ID)
	}
	return decodeRecord(b, pool, id.hash)
}

// lineageOf returns the record that an operation is on, nil if there is none.
func (s *session) lineageOf(o *operation) (*record, error) {
	r, err := s.recordOf(o)
	if r != nil || err != nil {
		return r, err
	}
	inc, _ := parseIncarnation(o.Incarnation)
	r, err = s.p.readRetired(volumeID{pool: s.p.name, hash: o.hash, inc: inc})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return r, err
}

// eachLineage reads the records of all volumes, those that are retired too.
func (p *Pool) eachLineage(ctx context.Context, fn func(name string, r *record, err error) error) error {
	if err := p.eachRecord(ctx, fn); err != nil {
		return err
	}
	return p.walk(ctx, dirRetired, "", func(name string, h hash, b []byte, err error) error {
		var r *record
		if err == nil {
			r, err = decodeRetired(b, p.name, h)
		}
		if err == nil {
			// While it retires a volume has two records, and the first counts.
			if live, lerr := p.readRecord(r.id.hash); lerr == nil && live.id == r.id {
				return nil
			}
		}
		return fn(name, r, err)
	})
}

// allocated is what an image takes on the share.
func (p *Pool) allocated(image string) (int64, error) {
	fi, err := p.tree.Stat(imagePath(image))
	if err != nil {
		return 0, err
	}
	return fsx.Allocated(fi), nil
}

// removeImage removes an image file and what is noted of it. The caller has
// its lock, or knows that nobody can open it.
func (p *Pool) removeImage(image string) error {
	if err := p.tree.Remove(imagePath(image)); err != nil {
		return err
	}
	return p.leases.Forget(image)
}
