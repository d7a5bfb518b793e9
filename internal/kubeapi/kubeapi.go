// Package kubeapi asks a cluster's API server, as a pod does: JSON over HTTPS with
// the account that Kubernetes mounts. It is so small because k8s.io/client-go is
// not: that would make every process of the plugin, the short-lived ones too,
// 17 MiB larger in memory and 20 ms slower to start; see docs/dependencies.md.
package kubeapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

const (
	accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"
	answersIn  = 5 * time.Second
	maxAnswer  = 4 << 20
)

// ErrNoCluster: this process runs in no pod.
var ErrNoCluster = errors.New("this is no pod: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set")

// StatusError is an answer that is no success.
type StatusError struct {
	Code    int // of HTTP
	Message string
}

func (e *StatusError) Error() string { return fmt.Sprintf("%d %s", e.Code, e.Message) }

// HTTPStatus is the code, for those who do not know this package.
func (e *StatusError) HTTPStatus() int { return e.Code }

// Client is an API server and an account.
type Client struct {
	base      string // https://host:port
	tokenFile string // read for each request: the token is changed now and then
	http      *http.Client
}

// InCluster finds the API server and the account of this pod. ErrNoCluster.
func InCluster() (*Client, error) {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, ErrNoCluster
	}
	return New("https://"+net.JoinHostPort(host, port), accountDir)
}

// New takes the server's certificate and the token from a directory.
func New(base, account string) (*Client, error) {
	file := filepath.Join(account, "ca.crt")
	ca, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the API server's certificate: %w; does the pod mount its account (automountServiceAccountToken)?", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s holds no certificate", file)
	}
	return &Client{
		base: base, tokenFile: filepath.Join(account, "token"),
		http: &http.Client{Timeout: answersIn, Transport: &http.Transport{
			TLSClientConfig:       &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			DialContext:           (&net.Dialer{Timeout: answersIn}).DialContext,
			TLSHandshakeTimeout:   answersIn,
			ResponseHeaderTimeout: answersIn,
			MaxConnsPerHost:       2,
			IdleConnTimeout:       time.Minute,
		}},
	}, nil
}

// MergePatch is the content type of a PATCH whose body holds what changes.
const MergePatch = "application/merge-patch+json"

// Do sends in, unless it is nil, and fills out from the answer, unless that is
// nil. It takes 5 s at most. *StatusError.
func (c *Client) Do(ctx context.Context, method, path string, in, out any) error {
	if err := c.do(ctx, method, path, in, out); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// Stream reads path, and gives an answer that goes on for as long as ctx or the
// server wants it to, such as a watch. *StatusError. The caller closes it.
func (c *Client) Stream(ctx context.Context, path string) (io.ReadCloser, error) {
	endless := *c.http
	endless.Timeout = 0
	resp, err := c.send(ctx, &endless, http.MethodGet, path, nil)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", http.MethodGet, path, err)
	}
	return resp.Body, nil
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.send(ctx, c.http, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil || out == nil {
		return err
	}
	return json.Unmarshal(b, out)
}

// send returns a successful answer, whose body the caller closes.
func (c *Client) send(ctx context.Context, client *http.Client, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(c.tokenFile)
	if err != nil {
		return nil, fmt.Errorf("read the account's token: %w", err)
	}
	r.Header.Set("Authorization", "Bearer "+string(bytes.TrimSpace(token)))
	r.Header.Set("Accept", "application/json")
	r.Header.Set("User-Agent", "vhdx-csi")
	switch {
	case method == http.MethodPatch:
		r.Header.Set("Content-Type", MergePatch)
	case in != nil:
		r.Header.Set("Content-Type", "application/json")
	}
	resp, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	var s struct{ Message string }
	if b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer)); err == nil {
		_ = json.Unmarshal(b, &s) // a proxy may answer anything
	}
	return nil, &StatusError{resp.StatusCode, fmt.Sprintf("%.256s", s.Message)}
}
