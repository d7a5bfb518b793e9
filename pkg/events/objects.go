package events

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// reference is an object that an Event is about.
type reference struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
	UID        string `json:"uid,omitempty"`
}

// event is core/v1's Event.
type event struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"metadata"`
	InvolvedObject reference `json:"involvedObject"`
	Reason         Reason    `json:"reason"`
	Message        string    `json:"message"`
	Type           string    `json:"type"`
	Source         struct {
		Component string `json:"component"`
		Host      string `json:"host,omitempty"`
	} `json:"source"`
	FirstTimestamp     time.Time `json:"firstTimestamp"`
	LastTimestamp      time.Time `json:"lastTimestamp"`
	Count              int       `json:"count"`
	ReportingComponent string    `json:"reportingComponent"`
	ReportingInstance  string    `json:"reportingInstance"`
}

// written is where an Event is.
type written struct{ namespace, name string }

func (w written) path() string { return eventsOf(w.namespace) + "/" + url.PathEscape(w.name) }

func eventsOf(namespace string) string {
	return "/api/v1/namespaces/" + url.PathEscape(namespace) + "/events"
}

// create writes a new Event for each object. An error after the first one has
// been written says so much, and no more.
func (r *Recorder) create(ctx context.Context, e Event) (at []written, err error) {
	refs := r.objects(ctx, e)
	for _, ref := range refs {
		ev := r.event(e, ref)
		where := written{ev.Metadata.Namespace, ev.Metadata.Name}
		if cerr := r.o.Cluster.Do(ctx, http.MethodPost, eventsOf(where.namespace), ev, nil); cerr != nil {
			err = errors.Join(err, cerr)
			continue
		}
		at = append(at, where)
	}
	return at, err
}

// again raises the count of Events that are there.
func (r *Recorder) again(ctx context.Context, h *history) error {
	patch := map[string]any{"count": h.count, "lastTimestamp": now()}
	var errs []error
	for _, w := range h.at {
		errs = append(errs, r.o.Cluster.Do(ctx, http.MethodPatch, w.path(), patch, nil))
	}
	return errors.Join(errs...)
}

func now() time.Time { return time.Now().UTC().Truncate(time.Second) }

func (r *Recorder) event(e Event, ref reference) event {
	ev := event{
		APIVersion: "v1", Kind: "Event", InvolvedObject: ref, Reason: e.Reason, Message: e.Message, Type: "Normal",
		FirstTimestamp: now(), LastTimestamp: now(), Count: 1, ReportingComponent: r.o.Driver, ReportingInstance: r.o.Instance,
	}
	if e.Warning {
		ev.Type = "Warning"
	}
	ev.Source.Component, ev.Source.Host = r.o.Driver, r.o.Node
	ev.Metadata.Namespace = ref.Namespace
	if ref.Namespace == "" {
		ev.Metadata.Namespace = "default" // where those of objects without a namespace are
	}
	var random [8]byte
	_, _ = rand.Read(random[:]) // it never fails
	ev.Metadata.Name = fmt.Sprintf("%.200s.%s", ref.Name, hex.EncodeToString(random[:]))
	return ev
}

// objects are those that an Event is about: the node or, of a controller, the
// driver, and where it is known the volume's PersistentVolume with its claim.
func (r *Recorder) objects(ctx context.Context, e Event) []reference {
	refs := []reference{r.home(ctx)}
	if e.Volume == "" || r.o.Node == "" {
		return refs
	}
	pv, err := r.persistentVolume(ctx, e.Volume)
	if err != nil {
		return refs // static, unknown or not allowed to: the node's Event names the volume
	}
	return append(refs, pv...)
}

// home is the object for whatever is about no volume.
func (r *Recorder) home(ctx context.Context) reference {
	if r.o.Node != "" {
		// kubectl describe finds a node's Events by its name as UID, as kubelet writes it.
		return reference{APIVersion: "v1", Kind: "Node", Name: r.o.Node, UID: r.o.Node}
	}
	ref := reference{APIVersion: "storage.k8s.io/v1", Kind: "CSIDriver", Name: r.o.Driver}
	var found struct{ Metadata struct{ UID string } }
	if r.o.Cluster.Do(ctx, http.MethodGet, "/apis/storage.k8s.io/v1/csidrivers/"+url.PathEscape(r.o.Driver), nil, &found) == nil {
		ref.UID = found.Metadata.UID
	}
	return ref
}

// persistentVolume finds the PersistentVolume of a volume that is attached to
// this node, and its claim, through the attachment: its name can be computed.
func (r *Recorder) persistentVolume(ctx context.Context, volume string) ([]reference, error) {
	var attachment struct {
		Spec struct {
			Source struct{ PersistentVolumeName string }
		}
	}
	sum := sha256.Sum256([]byte(volume + r.o.Driver + r.o.Node))
	path := "/apis/storage.k8s.io/v1/volumeattachments/csi-" + hex.EncodeToString(sum[:])
	if err := r.o.Cluster.Do(ctx, http.MethodGet, path, nil, &attachment); err != nil {
		return nil, err
	}
	var pv struct {
		Metadata struct{ UID string }
		Spec     struct{ ClaimRef *reference }
	}
	name := attachment.Spec.Source.PersistentVolumeName
	if err := r.o.Cluster.Do(ctx, http.MethodGet, "/api/v1/persistentvolumes/"+url.PathEscape(name), nil, &pv); err != nil {
		return nil, err
	}
	refs := []reference{{APIVersion: "v1", Kind: "PersistentVolume", Name: name, UID: pv.Metadata.UID}}
	if c := pv.Spec.ClaimRef; c != nil && c.Namespace != "" && c.Name != "" {
		refs = append(refs, reference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: c.Namespace, Name: c.Name, UID: c.UID})
	}
	return refs, nil
}
