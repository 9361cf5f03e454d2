/* shared.c - see shared.h. */
#include "shared.h"
#include <stdio.h>
#include <string.h>
#include <uv.h>

#define SLEPT_MS_MIN 20 /* less is what lies between the reading of two clocks */

uint64_t shared_now_ms(void)
{
    return uv_hrtime() / 1000000;
}

int shared_init(struct shared *s)
{
    static const uint8_t none[NODE_UUID_LEN];
    memset(s, 0, sizeof *s);
    int rc = pthread_mutex_init(&s->mutex, NULL);
    if (rc == 0)
        shared_reset(s, none);
    return err_from_errno(rc);
}

void shared_close(struct shared *s)
{
    pthread_mutex_destroy(&s->mutex);
}

void shared_page_set(struct shared *s, struct page *page)
{
    s->page = page;
    uint64_t boot = page_now_ms();
    s->boot_ahead_ms = s->boot_ahead_seen_ms = (int64_t)(boot - shared_now_ms());
}

void shared_page_close(struct shared *s)
{
    page_destroy(&s->page);
}

void shared_published_set(struct shared *s, uint64_t index)
{
    atomic_store(&s->published, index);
    if (s->page)
        atomic_store(&s->page->published, index);
}

void shared_generation_set(struct shared *s, uint64_t generation)
{
    if (s->page)
        atomic_store(&s->page->generation, generation);
}

void shared_page_stop(struct shared *s)
{
    if (s->page)
        atomic_store(&s->page->serving, 0);
}

/* Everything committed before `fresh_ms` (monotonic) is in the published state: the same in the clock of all processes. A machine that sleeps moves that clock on, and the
 * monotonic one not, so a moment that may have been before a sleep is put where it was then: rather too old than too new. The clocks are read in this
 * order for the same reason. The moment never goes back: a node that begins anew on the same state knows less than the page says. */
static void fresh_tell(struct shared *s, bool known, uint64_t fresh_ms)
{
    uint64_t boot = page_now_ms(), now = shared_now_ms();
    int64_t ahead = (int64_t)(boot - now);
    if (ahead > s->boot_ahead_seen_ms + SLEPT_MS_MIN)
        s->slept_ms = now;
    if (ahead > s->boot_ahead_seen_ms)
        s->boot_ahead_seen_ms = ahead;
    if (fresh_ms > s->slept_ms)
        s->boot_ahead_ms = s->boot_ahead_seen_ms;
    uint64_t fresh = fresh_ms + (uint64_t)s->boot_ahead_ms;
    if (known && fresh > atomic_load(&s->page->fresh_at_ms))
        atomic_store(&s->page->fresh_at_ms, fresh);
    atomic_store(&s->page->alive_at_ms, boot);
}

void shared_alive(struct shared *s)
{
    if (s->page)
        atomic_store(&s->page->alive_at_ms, page_now_ms());
}

void shared_view_get(struct shared *s, struct shared_view *view_r)
{
    pthread_mutex_lock(&s->mutex);
    *view_r = s->view;
    pthread_mutex_unlock(&s->mutex);
}

void shared_details_get(struct shared *s, struct shared_details *details_r)
{
    pthread_mutex_lock(&s->mutex);
    *details_r = s->details;
    pthread_mutex_unlock(&s->mutex);
}

static uint64_t since(const struct shared_view *view, uint64_t now_ms)
{
    return now_ms > view->taken_ms ? now_ms - view->taken_ms : 0;
}

uint64_t shared_age_ms(const struct shared_view *view, uint64_t now_ms)
{
    if (view->status.age_ms == UINT64_MAX)
        return UINT64_MAX;
    return view->status.age_ms + since(view, now_ms);
}

uint64_t shared_log_time_ms(const struct shared_view *view, uint64_t now_ms)
{
    return view->status.log_time_ms + since(view, now_ms);
}

void shared_phase_set(struct shared *s, enum shared_phase phase, const char *why)
{
    pthread_mutex_lock(&s->mutex);
    /* What served nothing doesn't begin to because it stops: an unconfigured node has no state, a failed one none to trust. */
    if (phase != SHARED_STOPPING || s->view.phase == SHARED_RUNNING)
        s->view.phase = phase;
    if (s->page && phase != SHARED_STOPPING) /* which leaves a state that can be read, and grows older */
        atomic_store(&s->page->serving, phase == SHARED_RUNNING);
    if (why)
        snprintf(s->details.failure, sizeof s->details.failure, "%s", why);
    pthread_mutex_unlock(&s->mutex);
}

/* Before the rest of it goes, nobody may answer from the state. */
static void page_reset(struct shared *s)
{
    if (!s->page)
        return;
    atomic_store(&s->page->serving, 0);
    atomic_store(&s->page->published, 0);
    atomic_store(&s->page->fresh_at_ms, 0);
    atomic_store(&s->page->generation, 0);
    atomic_store(&s->page->incarnation, 0);
    atomic_store(&s->page->cluster_id, 0);
    atomic_store(&s->page->node_id, 0);
}

void shared_reset(struct shared *s, const uint8_t uuid[NODE_UUID_LEN])
{
    pthread_mutex_lock(&s->mutex);
    page_reset(s);
    memset(&s->view, 0, sizeof s->view);
    memcpy(s->view.uuid, uuid, NODE_UUID_LEN);
    s->view.status.age_ms = UINT64_MAX;
    s->view.status.role = -1;
    char space[ERR_TEXT_LEN]; /* the machine's own, whoever runs on it */
    uint64_t space_free = s->details.space_free;
    memcpy(space, s->details.alarms[ALARM_SPACE], sizeof space);
    memset(&s->details, 0, sizeof s->details);
    memcpy(s->details.alarms[ALARM_SPACE], space, sizeof space);
    s->details.space_free = space_free;
    pthread_mutex_unlock(&s->mutex);
    atomic_store(&s->published, 0);
    atomic_store(&s->log_len, 0);
}

void shared_identity_set(struct shared *s, uint64_t cluster_id, uint64_t incarnation, uint64_t node_id)
{
    pthread_mutex_lock(&s->mutex);
    s->view.cluster_id = cluster_id;
    s->view.incarnation = incarnation;
    s->view.node_id = node_id;
    if (s->page) {
        atomic_store(&s->page->cluster_id, cluster_id);
        atomic_store(&s->page->node_id, node_id);
        atomic_store(&s->page->incarnation, incarnation);
    }
    pthread_mutex_unlock(&s->mutex);
}

void shared_status_set(struct shared *s, const struct node_status *status, uint64_t now_ms)
{
    pthread_mutex_lock(&s->mutex);
    s->view.status = *status;
    s->view.taken_ms = now_ms;
    if (s->page)
        fresh_tell(s, status->age_ms != UINT64_MAX, now_ms - status->age_ms);
    pthread_mutex_unlock(&s->mutex);
}

/* A member keeps its endpoint and site when the list changes around it. */
void shared_members_set(struct shared *s, const struct node_peer *members, size_t n)
{
    if (n > MEMBERS_MAX)
        n = MEMBERS_MAX;
    pthread_mutex_lock(&s->mutex);
    struct shared_details *d = &s->details;
    char endpoints[MEMBERS_MAX][sizeof d->endpoints[0]], sites[MEMBERS_MAX][sizeof d->sites[0]];
    memset(endpoints, 0, sizeof endpoints);
    memset(sites, 0, sizeof sites);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < d->members_n; k++)
            if (d->members[k].id == members[i].id) {
                memcpy(endpoints[i], d->endpoints[k], sizeof endpoints[i]);
                memcpy(sites[i], d->sites[k], sizeof sites[i]);
            }
    memcpy(d->endpoints, endpoints, sizeof endpoints);
    memcpy(d->sites, sites, sizeof sites);
    memcpy(d->members, members, n * sizeof *members);
    d->members_n = n;
    pthread_mutex_unlock(&s->mutex);
}

void shared_endpoint_set(struct shared *s, uint64_t id, const char *endpoint, const char *site)
{
    pthread_mutex_lock(&s->mutex);
    for (size_t i = 0; i < s->details.members_n; i++)
        if (s->details.members[i].id == id) {
            snprintf(s->details.endpoints[i], sizeof s->details.endpoints[i], "%s", endpoint ? endpoint : "");
            snprintf(s->details.sites[i], sizeof s->details.sites[i], "%s", site ? site : "");
        }
    pthread_mutex_unlock(&s->mutex);
}

void shared_fetching_set(struct shared *s, const struct shared_image *image)
{
    pthread_mutex_lock(&s->mutex);
    s->details.fetching = image ? *image : (struct shared_image){0};
    pthread_mutex_unlock(&s->mutex);
}

void shared_sending_set(struct shared *s, unsigned slot, const struct shared_image *image)
{
    pthread_mutex_lock(&s->mutex);
    s->details.sending[slot] = image ? *image : (struct shared_image){0};
    pthread_mutex_unlock(&s->mutex);
}

bool shared_alarm_set(struct shared *s, enum shared_alarm alarm, const char *text)
{
    char *have = s->details.alarms[alarm];
    pthread_mutex_lock(&s->mutex);
    bool other = strcmp(have, text ? text : "") != 0;
    snprintf(have, ERR_TEXT_LEN, "%s", text ? text : "");
    pthread_mutex_unlock(&s->mutex);
    return other;
}

void shared_space_set(struct shared *s, uint64_t free_len)
{
    pthread_mutex_lock(&s->mutex);
    s->details.space_free = free_len;
    pthread_mutex_unlock(&s->mutex);
}

void shared_readers_set(struct shared *s, unsigned others)
{
    pthread_mutex_lock(&s->mutex);
    s->details.local_readers = others;
    pthread_mutex_unlock(&s->mutex);
}

void shared_scrubbed(struct shared *s, uint64_t now_ms)
{
    pthread_mutex_lock(&s->mutex);
    s->details.scrubbed_ms = now_ms;
    pthread_mutex_unlock(&s->mutex);
}
