package driver

import (
	"fmt"
	"path/filepath"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// The limits of the specification ("Size Limits"). Paths may be as long as the
// kernel allows, and a node id 256 bytes.
const (
	maxString     = 128
	maxMap        = 4 << 10
	maxPath       = 4095
	maxNodeID     = 256
	maxMountFlags = 4 << 10
	maxMessage    = 4 << 20
)

// longer holds the fields that have a limit of their own.
var longer = map[protoreflect.Name]int{
	"volume_path":         maxPath,
	"target_path":         maxPath,
	"staging_target_path": maxPath,
	"volume_publish_path": maxPath,
	"node_id":             maxNodeID,
}

// checkLimits bounds every field of a request (I-DRV-5).
func checkLimits(req any) error {
	m, ok := req.(proto.Message)
	if !ok {
		return nil
	}
	return checkMessage(m.ProtoReflect())
}

func checkMessage(m protoreflect.Message) error {
	var err error
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		err = checkField(f, v)
		return err == nil
	})
	return err
}

func checkField(f protoreflect.FieldDescriptor, v protoreflect.Value) error {
	switch {
	case f.IsMap():
		n := 0
		v.Map().Range(func(k protoreflect.MapKey, e protoreflect.Value) bool {
			n += len(k.String()) + len(e.String())
			return true
		})
		return tooLong(f, n, maxMap)
	case f.IsList() && f.Kind() == protoreflect.StringKind:
		n := 0
		for i := range v.List().Len() {
			n += len(v.List().Get(i).String())
		}
		return tooLong(f, n, maxMountFlags)
	case f.IsList() && f.Kind() == protoreflect.MessageKind:
		for i := range v.List().Len() {
			if err := checkMessage(v.List().Get(i).Message()); err != nil {
				return err
			}
		}
	case f.Kind() == protoreflect.MessageKind:
		return checkMessage(v.Message())
	case f.Kind() == protoreflect.StringKind:
		limit := maxString
		if l, ok := longer[f.Name()]; ok {
			limit = l
		}
		return tooLong(f, len(v.String()), limit)
	}
	return nil
}

func tooLong(f protoreflect.FieldDescriptor, n, limit int) error {
	if n <= limit {
		return nil
	}
	return fmt.Errorf("%w: %s has %d bytes, the limit is %d", errInvalid, f.Name(), n, limit)
}

// required refuses an empty field.
func required(name, value string) error {
	if value == "" {
		return fmt.Errorf("%w: %s is missing", errInvalid, name)
	}
	return nil
}

// absolute refuses a path that is missing, relative or not in its shortest
// form: it will be mounted on, so it must mean one place only.
func absolute(name, path string) error {
	if err := required(name, path); err != nil {
		return err
	}
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
		return fmt.Errorf("%w: %s %q is not an absolute path without ., .. or doubled slashes", errInvalid, name, path)
	}
	return nil
}

// volumeName refuses what the specification forbids in names: control
// characters other than tab, line feed and carriage return.
func volumeName(name string) error {
	if err := required("name", name); err != nil {
		return err
	}
	for _, r := range name {
		if r == '\t' || r == '\n' || r == '\r' {
			continue
		}
		if r < 0x20 || r >= 0x7f && r <= 0x9f {
			return fmt.Errorf("%w: name %q contains the control character %U", errInvalid, name, r)
		}
	}
	return nil
}
