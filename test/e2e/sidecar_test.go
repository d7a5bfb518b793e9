package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// clientRole is the metadata sidecar's own for backup programs.
const clientRole = "external-snapshot-metadata-client-runner"

var services = schema.GroupVersionResource{Group: "cbt.storage.k8s.io", Version: "v1beta1", Resource: "snapshotmetadataservices"}

// extent is a part of a volume.
type extent struct{ off, size int64 }

// backupProgram asks the metadata sidecar, with the rights of one account and no more.
type backupProgram struct {
	*env
	cluster  kubernetes.Interface // with the account's rights
	objects  dynamic.Interface    // likewise
	maps     api.SnapshotMetadataClient
	audience string
}

// backupProgram makes an account, gives it the role, and connects to the sidecar
// as the object SnapshotMetadataService says.
func (e *env) backupProgram(account string) *backupProgram {
	e.Helper()
	e.account(account)
	e.grant(account, clientRole)
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		e.Fatal(err)
	}
	config.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:" + e.ns + ":" + account}
	p := &backupProgram{env: e, cluster: kubernetes.NewForConfigOrDie(config), objects: dynamic.NewForConfigOrDie(config)}
	p.connect()
	return p
}

func (e *env) account(name string) {
	e.Helper()
	a := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := client.CoreV1().ServiceAccounts(e.ns).Create(e.ctx, a, metav1.CreateOptions{}); err != nil {
		e.Fatal(err)
	}
}

func (e *env) grant(account, role string) {
	e.Helper()
	b, err := client.RbacV1().ClusterRoleBindings().Create(e.ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: account, Namespace: e.ns}},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
	}, metav1.CreateOptions{})
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() { _ = client.RbacV1().ClusterRoleBindings().Delete(e.ctx, b.Name, metav1.DeleteOptions{}) })
}

func (p *backupProgram) connect() {
	p.Helper()
	o, err := p.objects.Resource(services).Get(p.ctx, driverName, metav1.GetOptions{})
	if err != nil {
		p.Fatal(err)
	}
	field := func(name string) string { s, _, _ := unstructured.NestedString(o.Object, "spec", name); return s }
	p.audience = field("audience")
	ca, err := base64.StdEncoding.DecodeString(field("caCert"))
	if err != nil {
		p.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	host, port, err := net.SplitHostPort(field("address"))
	if err != nil {
		p.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+p.endpoint(host, port),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: host, MinVersion: tls.VersionTLS12})))
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { _ = conn.Close() })
	p.maps = api.NewSnapshotMetadataClient(conn)
}

// endpoint is a pod behind a port of a Service: the cluster has neither DNS nor
// kube-proxy.
func (p *backupProgram) endpoint(host, port string) string {
	p.Helper()
	name, namespace, _ := strings.Cut(host, ".")
	s, err := client.CoreV1().Services(namespace).Get(p.ctx, name, metav1.GetOptions{})
	if err != nil || len(s.Spec.Ports) != 1 || strconv.Itoa(int(s.Spec.Ports[0].Port)) != port {
		p.Fatalf("Service %s has no port %s: %v", host, port, err)
	}
	var address string
	p.await("endpoint of "+host, func() error {
		slices, err := client.DiscoveryV1().EndpointSlices(namespace).List(p.ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + name})
		if err != nil {
			return err
		}
		for _, s := range slices.Items {
			for _, e := range s.Endpoints {
				if e.Conditions.Ready != nil && *e.Conditions.Ready && len(s.Ports) == 1 {
					address = net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*s.Ports[0].Port)))
					return nil
				}
			}
		}
		return fmt.Errorf("none is ready: %+v", slices.Items)
	})
	return address
}

// token is an account's, for an audience. by asks for it.
func (e *env) token(by kubernetes.Interface, account, audience string) string {
	e.Helper()
	t, err := by.CoreV1().ServiceAccounts(e.ns).CreateToken(e.ctx, account, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		e.Fatal(err)
	}
	return t.Status.Token
}

// handle is what the driver calls a snapshot, as the base of a delta is named.
func (p *backupProgram) handle(snapshot string) string {
	p.Helper()
	get := func(from dynamic.ResourceInterface, name string, field ...string) string {
		o, err := from.Get(p.ctx, name, metav1.GetOptions{})
		if err != nil {
			p.Fatal(err)
		}
		s, _, _ := unstructured.NestedString(o.Object, field...)
		return s
	}
	contents := snapshots
	contents.Resource = "volumesnapshotcontents"
	bound := get(p.objects.Resource(snapshots).Namespace(p.ns), snapshot, "status", "boundVolumeSnapshotContentName")
	return get(p.objects.Resource(contents), bound, "status", "snapshotHandle")
}

// allocated is what a snapshot holds; token is the security token.
func (p *backupProgram) allocated(token, snapshot string) ([]extent, int64, error) {
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	s, err := p.maps.GetMetadataAllocated(ctx, &api.GetMetadataAllocatedRequest{SecurityToken: token, Namespace: p.ns, SnapshotName: snapshot})
	if err != nil {
		return nil, 0, err
	}
	return receive(s.Recv)
}

// delta is what differs from the snapshot with the handle base.
func (p *backupProgram) delta(token, base, snapshot string) ([]extent, int64, error) {
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	s, err := p.maps.GetMetadataDelta(ctx, &api.GetMetadataDeltaRequest{
		SecurityToken: token, Namespace: p.ns, BaseSnapshotId: base, TargetSnapshotName: snapshot,
		MaxResults: 2, // so that there is more than one message
	})
	if err != nil {
		return nil, 0, err
	}
	return receive(s.Recv)
}

type message interface {
	GetVolumeCapacityBytes() int64
	GetBlockMetadata() []*api.BlockMetadata
}

// receive reads a stream to its end.
func receive[M message](next func() (M, error)) (found []extent, size int64, err error) {
	for {
		m, err := next()
		if errors.Is(err, io.EOF) {
			return found, size, nil
		}
		if err != nil {
			return nil, 0, err
		}
		size = m.GetVolumeCapacityBytes()
		for _, b := range m.GetBlockMetadata() {
			found = append(found, extent{b.GetByteOffset(), b.GetSizeBytes()})
		}
	}
}
