package node

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mountAttrs are those of one mount, not of its filesystem.
type mountAttrs struct{ set, clear uint64 }

// attrOptions are the options that a bind mount can have for itself. All
// others belong to the filesystem, which is mounted once, at the staging path.
var attrOptions = map[string]mountAttrs{
	"defaults":    {},
	"ro":          {set: unix.MOUNT_ATTR_RDONLY},
	"rw":          {clear: unix.MOUNT_ATTR_RDONLY},
	"nosuid":      {set: unix.MOUNT_ATTR_NOSUID},
	"suid":        {clear: unix.MOUNT_ATTR_NOSUID},
	"nodev":       {set: unix.MOUNT_ATTR_NODEV},
	"dev":         {clear: unix.MOUNT_ATTR_NODEV},
	"noexec":      {set: unix.MOUNT_ATTR_NOEXEC},
	"exec":        {clear: unix.MOUNT_ATTR_NOEXEC},
	"nodiratime":  {set: unix.MOUNT_ATTR_NODIRATIME},
	"diratime":    {clear: unix.MOUNT_ATTR_NODIRATIME},
	"nosymfollow": {set: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"symfollow":   {clear: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"relatime":    {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
	"noatime":     {set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME},
	"strictatime": {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
}

// refusedOptions would make mount(8) do something else than mount this device.
var refusedOptions = []string{
	"bind", "rbind", "move", "remount", "loop", "offset", "sizelimit", "helper",
	"private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable",
}

// CSI calls mount flags sensitive, so messages name an option and never its value.
func optionName(o string) string {
	name, _, _ := strings.Cut(o, "=")
	return name
}

// splitFlags makes one option of each element. A comma inside double quotes
// belongs to the option: an SELinux context has some.
func splitFlags(flags []string) ([]string, error) {
	var options []string
	for _, f := range flags {
		quoted := false
		for o := range strings.FieldsFuncSeq(f, func(r rune) bool {
			if r == '"' {
				quoted = !quoted
			}
			return r == ',' && !quoted
		}) {
			options = append(options, strings.TrimSpace(o))
		}
		if quoted {
			return nil, fmt.Errorf("%w: mount flag %q: quote without an end", ErrInvalid, optionName(f))
		}
	}
	options = slices.DeleteFunc(options, func(o string) bool { return o == "" })
	for _, o := range options {
		if err := checkFlag(o); err != nil {
			return nil, err
		}
	}
	return options, nil
}

func checkFlag(o string) error {
	name := optionName(o)
	lower := strings.ToLower(name)
	switch {
	case strings.ContainsAny(o, "\x00\n\r"):
		return fmt.Errorf("%w: mount flag %q", ErrInvalid, name)
	case slices.Contains(refusedOptions, lower), strings.HasPrefix(lower, "x-mount"):
		return fmt.Errorf("%w: mount flag %q changes what is mounted, and is not allowed", ErrInvalid, name)
	}
	return nil
}

// bindAttrs gives the attributes of a bind mount with these options. Those of
// the filesystem must be the staged ones: a bind mount cannot change them.
func bindAttrs(options, staged []string, readOnly bool) (mountAttrs, error) {
	var a mountAttrs
	if readOnly {
		options = append(slices.Clone(options), "ro")
	}
	for _, o := range options {
		x, ok := attrOptions[o]
		if !ok && !slices.Contains(staged, o) {
			return mountAttrs{}, fmt.Errorf("mount flag %q: %w: the filesystem was staged without it", optionName(o), ErrIncompatible)
		}
		a.set = a.set&^x.clear | x.set
		a.clear = a.clear&^x.set | x.clear
	}
	return a, nil
}
