package pool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
)

// format is the version of every file this package writes. A reader refuses a
// higher one (I-POOL-10).
const format = 1

// maxFile bounds a marker or a record, of which that of a volume with as many
// layers as there can be is the longest; maxAccount the account.
const (
	maxFile    = 512 << 10
	maxAccount = 1 << 20
)

// header begins every object.
type header struct {
	Format int `json:"format"`
}

// extras are the fields of an object that this version does not know. They are
// written back as they were (I-POOL-10).
type extras map[string]json.RawMessage

// decodeObject fills the struct that v points to from a JSON object, by exact
// field names. Fields without omitempty must be there. Unknown fields at the
// top are returned, below it refused.
func decodeObject(b []byte, v any) (extras, error) {
	var top map[string]json.RawMessage
	if err := json.Unmarshal(b, &top); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	var h header
	if err := json.Unmarshal(top["format"], &h.Format); err != nil || h.Format < 1 {
		return nil, fmt.Errorf("%w: no format version", ErrDamaged)
	}
	if h.Format > format {
		return nil, fmt.Errorf("%w: %d, this program knows up to %d", ErrFormat, h.Format, format)
	}
	delete(top, "format")
	s := reflect.ValueOf(v).Elem()
	for i := range s.NumField() {
		name, option, _ := strings.Cut(s.Type().Field(i).Tag.Get("json"), ",")
		raw, ok := top[name]
		if !ok && option == "omitempty" {
			continue
		}
		delete(top, name)
		if err := decodeField(raw, s.Field(i).Addr().Interface()); err != nil {
			return nil, fmt.Errorf("%w: field %q: %w", ErrDamaged, name, err)
		}
	}
	if len(top) == 0 {
		return nil, nil
	}
	return top, nil
}

func decodeField(raw json.RawMessage, dst any) error {
	if len(raw) == 0 || string(raw) == "null" {
		return errors.New("missing")
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	return dec.Decode(dst)
}

// encodeObject is the inverse of decodeObject, indented for people.
func encodeObject(v any, extra extras) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, `{"format":%d`, format)
	if body := b[1 : len(b)-1]; len(body) > 0 {
		out.WriteByte(',')
		out.Write(body)
	}
	for _, k := range slices.Sorted(maps.Keys(extra)) {
		key, err := json.Marshal(k)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&out, ",%s:%s", key, extra[k])
	}
	out.WriteByte('}')
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, out.Bytes(), "", "  "); err != nil {
		return nil, err
	}
	pretty.WriteByte('\n')
	return pretty.Bytes(), nil
}

// readFile reads a file of the pool. What is there but cannot be one of ours is
// ErrDamaged. Absence is fs.ErrNotExist, and only after the server was asked.
func (p *Pool) readFile(dir, name string, limit int) ([]byte, error) {
	b, err := p.tree.Read(dir+"/"+name, limit)
	if errors.Is(err, fs.ErrNotExist) {
		p.refresh(dir)
		b, err = p.tree.Read(dir+"/"+name, limit)
	}
	if errors.Is(err, fsx.ErrForeign) || errors.Is(err, fsx.ErrTooLarge) {
		return nil, fmt.Errorf("pool %s: %w: %w", p.name, ErrDamaged, err)
	}
	return b, err
}

// refresh drops cached absence of dir and of what is in it. If that fails, the
// read that follows fails too.
func (p *Pool) refresh(dir string) {
	for i, c := range dir + "/" {
		if c != '/' {
			continue
		}
		d, err := p.tree.Dir(dir[:i])
		if err != nil {
			return
		}
		d.Refresh() //nolint:errcheck // see above
		d.Close()
	}
}
