package drain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/kubeapi"
)

const (
	pageSize    = 200      // attachments in one answer
	maxWatch    = 64 << 20 // bytes of one watch; then the list is made anew
	watchFor    = 5 * time.Minute
	attachments = "/apis/storage.k8s.io/v1/volumeattachments"
)

type meta struct {
	Name            string `json:"name"`
	ResourceVersion string `json:"resourceVersion"`
	Continue        string `json:"continue"`
}

type node struct {
	Spec struct {
		Unschedulable bool `json:"unschedulable"`
		Taints        []struct {
			Key string `json:"key"`
		} `json:"taints"`
	} `json:"spec"`
}

type attachment struct {
	Metadata meta `json:"metadata"`
	Spec     struct {
		Attacher string `json:"attacher"`
		NodeName string `json:"nodeName"`
	} `json:"spec"`
}

// answered reports whether err is an answer of the API server with one of codes.
func answered(err error, codes ...int) bool {
	s, ok := errors.AsType[*kubeapi.StatusError](err)
	if !ok {
		return false
	}
	for _, c := range codes {
		if s.Code == c {
			return true
		}
	}
	return false
}

// refused marks an answer that will not change by itself with ErrRefused.
func refused(err error) error {
	if answered(err, http.StatusUnauthorized, http.StatusForbidden) {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return err
}

func (w *Waiter) node(ctx context.Context) (*node, error) {
	n := &node{}
	return n, refused(w.API.Do(ctx, http.MethodGet, "/api/v1/nodes/"+url.PathEscape(w.Node), nil, n))
}

// list hands all attachments of the cluster to see, and returns the version of
// the list, which a watch goes on from.
func (w *Waiter) list(ctx context.Context, see func(attachment)) (version string, err error) {
	query := url.Values{"limit": {strconv.Itoa(pageSize)}}
	for {
		var page struct {
			Metadata meta         `json:"metadata"`
			Items    []attachment `json:"items"`
		}
		if err := w.API.Do(ctx, http.MethodGet, attachments+"?"+query.Encode(), nil, &page); err != nil {
			return "", refused(err)
		}
		for _, item := range page.Items {
			see(item)
		}
		if page.Metadata.Continue == "" {
			return page.Metadata.ResourceVersion, nil
		}
		query.Set("continue", page.Metadata.Continue)
	}
}

// watch hands every change since version to see, until that says done. Else it
// returns why there will be no more.
func (w *Waiter) watch(ctx context.Context, version string, see func(a attachment, deleted bool) (done bool)) error {
	query := url.Values{"watch": {"1"}, "resourceVersion": {version}, "timeoutSeconds": {strconv.Itoa(int(watchFor.Seconds()))}}
	body, err := w.API.Stream(ctx, attachments+"?"+query.Encode())
	if err != nil {
		return refused(err)
	}
	defer body.Close()
	events := json.NewDecoder(io.LimitReader(body, maxWatch))
	for {
		var e struct {
			Type   string          `json:"type"`
			Object json.RawMessage `json:"object"`
		}
		if err := events.Decode(&e); err != nil {
			return fmt.Errorf("read the watch of volume attachments: %w", err)
		}
		var item attachment
		switch e.Type {
		case "ADDED", "MODIFIED", "DELETED":
			if err := json.Unmarshal(e.Object, &item); err != nil {
				return fmt.Errorf("read a volume attachment: %w", err)
			}
		case "ERROR":
			return fmt.Errorf("the watch of volume attachments ended: %.500s", e.Object)
		default:
			continue
		}
		if see(item, e.Type == "DELETED") {
			return nil
		}
	}
}
