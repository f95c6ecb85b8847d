// A tour of the API with client-go's typed clients, which speak protobuf here and nothing else.
//
//	KUBECONFIG=... go run . NAMESPACE
//
// Tells a line a step; the namespace has to exist. One that succeeds leaves nothing; one that fails leaves what it made.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"reflect"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authnv1 "k8s.io/api/authentication/v1"
	authzv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

const protobuf = runtime.ContentTypeProtobuf

// How long anything may take.
const patience = 30 * time.Second

// Counts the answers by their media types.
type counting struct {
	http.RoundTripper
	lock  sync.Mutex
	types map[string]int
}

func (c *counting) RoundTrip(request *http.Request) (*http.Response, error) {
	answer, err := c.RoundTripper.RoundTrip(request)
	if err == nil {
		c.lock.Lock()
		c.types[answer.Header.Get("Content-Type")]++
		c.lock.Unlock()
	}
	return answer, err
}

func must[T any](value T, err error) T {
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func expect(what string, found, wanted any) {
	if !reflect.DeepEqual(found, wanted) {
		panic(fmt.Sprintf("%s: %v, not %v", what, found, wanted))
	}
}

func main() {
	namespace := os.Args[1]
	ctx, cancel := context.WithTimeout(context.Background(), 4*patience)
	defer cancel()
	config := must(clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG")))
	config.ContentType, config.AcceptContentTypes = protobuf, protobuf
	answers := &counting{types: map[string]int{}}
	config.Wrap(func(inner http.RoundTripper) http.RoundTripper {
		answers.RoundTripper = inner
		return answers
	})
	client := must(kubernetes.NewForConfig(config))
	// JSON, to compare with.
	plain := *config
	plain.ContentType, plain.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON
	plain.WrapTransport = nil
	other := must(kubernetes.NewForConfig(&plain))

	maps := client.CoreV1().ConfigMaps(namespace)
	made := must(maps.Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "tour", Labels: map[string]string{"tour": "1"}},
		Data:       map[string]string{"a": "1", "empty": ""},
		BinaryData: map[string][]byte{"b": {0, 255}},
	}, metav1.CreateOptions{}))
	same := func(read *corev1.ConfigMap) {
		in := must(other.CoreV1().ConfigMaps(namespace).Get(ctx, "tour", metav1.GetOptions{}))
		expect("the ConfigMap in JSON", read, in)
	}
	same(made)
	made.Data["a"] = "2"
	made = must(maps.Update(ctx, made, metav1.UpdateOptions{}))
	same(made)
	stale := made.DeepCopy()
	stale.ResourceVersion = "1"
	_, err := maps.Update(ctx, stale, metav1.UpdateOptions{})
	expect("a stale update is a conflict", apierrors.IsConflict(err), true)
	_, err = maps.Create(ctx, made.DeepCopy(), metav1.CreateOptions{})
	expect("resourceVersion of a new object", apierrors.IsBadRequest(err), true)
	_, err = maps.Get(ctx, "none", metav1.GetOptions{})
	expect("what is not there", apierrors.IsNotFound(err), true)
	made = must(maps.Patch(ctx, "tour", types.StrategicMergePatchType, []byte(`{"data":{"c":"3"}}`), metav1.PatchOptions{}))
	same(made)
	fmt.Println("objects are created, replaced, patched and refused as in JSON")

	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace))
	seen := make(chan string, 100)
	informer := factory.Core().V1().ConfigMaps().Informer()
	told := func(what string) func(any) {
		return func(object any) {
			if found, ok := object.(*corev1.ConfigMap); ok && strings.HasPrefix(found.Name, "tour") {
				seen <- what + " " + found.Name
			}
		}
	}
	must(informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: told("add"), DeleteFunc: told("delete"),
		UpdateFunc: func(_, object any) { told("update")(object) },
	}))
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	next := func(wanted string) {
		select {
		case found := <-seen:
			expect("the informer", found, wanted)
		case <-time.After(patience):
			panic("the informer did not tell " + wanted)
		}
	}
	next("add tour")
	must(maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "tour-2"}}, metav1.CreateOptions{}))
	next("add tour-2")
	made.Immutable = new(bool)
	must(maps.Update(ctx, made, metav1.UpdateOptions{}))
	next("update tour")
	check(maps.Delete(ctx, "tour-2", *metav1.NewDeleteOptions(0)))
	next("delete tour-2")
	fmt.Println("an informer lists, watches and follows")

	partial := must(metadata.NewForConfig(config)).Resource(corev1.SchemeGroupVersion.WithResource("configmaps"))
	list := must(partial.Namespace(namespace).List(ctx, metav1.ListOptions{LabelSelector: "tour=1"}))
	expect("metadata", []any{len(list.Items), list.Items[0].Name}, []any{1, "tour"})
	fmt.Println("metadata comes alone")

	zero, five := int32(0), int64(5)
	deployments := client.AppsV1().Deployments(namespace)
	labels := map[string]string{"app": "tour"}
	quarter := intstr.FromString("25%")
	deployed := must(deployments.Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "tour"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &zero,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Strategy: appsv1.DeploymentStrategy{RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &quarter}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					TerminationGracePeriodSeconds: &five,
					Containers: []corev1.Container{{
						Name: "c", Image: "registry.wharf/none:1",
						Ports: []corev1.ContainerPort{{ContainerPort: 80}},
						Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{
							"cpu": resource.MustParse("1.5"), "memory": resource.MustParse("64Mi"),
						}},
						LivenessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{
							HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(80)},
						}},
					}},
					Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{
						EmptyDir: &corev1.EmptyDirVolumeSource{},
					}}},
				},
			},
		},
	}, metav1.CreateOptions{}))
	expect("zero replicas", *deployed.Spec.Replicas, zero)
	expect("a default", deployed.Spec.Strategy.Type, appsv1.RollingUpdateDeploymentStrategyType)
	scale := must(deployments.GetScale(ctx, "tour", metav1.GetOptions{}))
	expect("the selector", scale.Status.Selector, "app=tour")
	scale.Spec.Replicas = 0
	scale.ResourceVersion = "" // the controller writes the Deployment's status meanwhile
	must(deployments.UpdateScale(ctx, "tour", scale, metav1.UpdateOptions{}))
	fmt.Println("a Deployment is made, defaulted and scaled")

	pods := client.CoreV1().Pods(namespace)
	pod := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "tour"},
		Spec: corev1.PodSpec{
			SchedulerName: "nobody",
			Containers:    []corev1.Container{{Name: "c", Image: "registry.wharf/none:1"}},
		},
	}
	waiting := must(pods.Create(ctx, &pod, metav1.CreateOptions{}))
	waiting.Status.Conditions = append(waiting.Status.Conditions, corev1.PodCondition{
		Type: "example.com/seen", Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now(),
	})
	waiting = must(pods.UpdateStatus(ctx, waiting, metav1.UpdateOptions{}))
	in := must(other.CoreV1().Pods(namespace).Get(ctx, "tour", metav1.GetOptions{}))
	expect("the Pod in JSON", waiting, in)
	check(pods.EvictV1(ctx, &policyv1.Eviction{
		ObjectMeta:    metav1.ObjectMeta{Name: "tour", Namespace: namespace},
		DeleteOptions: metav1.NewDeleteOptions(0),
	}))
	_, err = pods.Get(ctx, "tour", metav1.GetOptions{})
	expect("the evicted Pod is gone", apierrors.IsNotFound(err), true)
	bound := must(pods.Create(ctx, &pod, metav1.CreateOptions{}))
	check(pods.Bind(ctx, &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Name: "tour", UID: bound.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: "tour-none"},
	}, metav1.CreateOptions{}))
	bound = must(pods.Get(ctx, "tour", metav1.GetOptions{}))
	expect("its node", bound.Spec.NodeName, "tour-none")
	check(pods.Delete(ctx, "tour", *metav1.NewDeleteOptions(0)))
	fmt.Println("a Pod's status is written, it is evicted, bound and deleted")

	reviews := client.AuthorizationV1().SelfSubjectAccessReviews()
	review := must(reviews.Create(ctx, &authzv1.SelfSubjectAccessReview{
		Spec: authzv1.SelfSubjectAccessReviewSpec{
			ResourceAttributes: &authzv1.ResourceAttributes{Verb: "get", Resource: "pods", Namespace: namespace},
		},
	}, metav1.CreateOptions{}))
	expect("may I", review.Status.Allowed, true)
	accounts := client.CoreV1().ServiceAccounts(namespace)
	must(accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "tour"}}, metav1.CreateOptions{}))
	token := must(accounts.CreateToken(ctx, "tour", &authnv1.TokenRequest{}, metav1.CreateOptions{}))
	expect("a token has three parts", strings.Count(token.Status.Token, "."), 2)
	fmt.Println("reviews and tokens are answered")

	check(maps.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "tour=1"}))
	next("delete tour")
	check(deployments.Delete(ctx, "tour", metav1.DeleteOptions{}))
	check(accounts.Delete(ctx, "tour", metav1.DeleteOptions{}))
	answers.lock.Lock()
	defer answers.lock.Unlock()
	expect("answers were counted", len(answers.types) > 0, true)
	for name, count := range answers.types {
		if !strings.HasPrefix(name, protobuf) {
			panic(fmt.Sprintf("%d answers came as %q", count, name))
		}
	}
	fmt.Println("everything was said in protobuf")
}
