package driver

import (
	"strings"

	"github.com/kubernetes-csi/csi-lib-utils/protosanitizer"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// loggable is a request as it may be logged: secrets replaced by the field
// option the specification gives them, and credentials taken out of mount
// flags, contexts and parameters (I-DRV-7). It does its work when it is printed.
type loggable struct{ req any }

func (l loggable) String() string {
	m, ok := l.req.(proto.Message)
	if !ok {
		return ""
	}
	m = proto.Clone(m)
	scrubMessage(m.ProtoReflect())
	return protosanitizer.StripSecrets(m).String()
}

func scrubMessage(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap() && f.MapValue().Kind() == protoreflect.StringKind:
			scrubMap(v.Map())
		case f.IsList() && f.Kind() == protoreflect.StringKind:
			for i := range v.List().Len() {
				v.List().Set(i, protoreflect.ValueOfString(scrub(v.List().Get(i).String())))
			}
		case f.IsList() && f.Kind() == protoreflect.MessageKind:
			for i := range v.List().Len() {
				scrubMessage(v.List().Get(i).Message())
			}
		case !f.IsMap() && f.Kind() == protoreflect.MessageKind:
			scrubMessage(v.Message())
		}
		return true
	})
}

// scrubMap takes out the values whose keys say what they are. The names of
// claims and secrets under the sidecars' prefix are no credentials.
func scrubMap(m protoreflect.Map) {
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		clean := scrub(v.String())
		if !strings.HasPrefix(k.String(), sidecarPrefix) && credential.MatchString(k.String()+"=x") {
			clean = stripped
		}
		m.Set(k, protoreflect.ValueOfString(clean))
		return true
	})
}
